import pytest

from mlcomp.grading.generate import _notebook_link


def test_a_code_answer_that_waits_for_a_person_shows_no_error():
    from mlcomp.grading.gradebook import _outcome  # with nbgrader, seconds that every worker would spend at the top

    assert _outcome(None, 3, "") == []
    # The other two kinds, for comparison: full points are printed, fewer are an error with the reason.
    assert [output.output_type for output in _outcome(3, 3, "")] == ["stream"]
    assert _outcome(0, 3, "not answered yet")[0].evalue == "not answered yet"


def test_a_configuration_without_repository_is_named(tmp_path):
    config = tmp_path / "_config.yml"
    config.write_text("repository:\n  url: https://example.org/course\n")
    with pytest.raises(ValueError, match=r"_config.yml does not say the branch"):
        _notebook_link(config)
