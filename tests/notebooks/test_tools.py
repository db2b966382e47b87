"""The notebook tools: the template is a notebook that runs and verifies, and each fault is seen."""

import shutil

import nbformat
import pytest

from tools import notebooks as tool
from tools.inventory import ROOT

pytestmark = pytest.mark.slow  # a kernel runs the template; the rules have tests without one


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """The authors' template, converted and executed once."""
    source = tmp_path_factory.mktemp("lecture") / "template.py"
    shutil.copy(ROOT / "tools" / "template.py", source)
    path = tool.from_py(source)
    assert tool.is_stale(tool.read(path))
    with pytest.MonkeyPatch.context() as patch:  # the library may be edited while its tests run
        patch.setattr(tool, "library_hash", lambda code: "this one")
        assert tool.run(path) is None
        yield path


@pytest.fixture
def notebook(template):
    return tool.read(template), template


def code_cells(nb):
    return [c for c in nb.cells if c.cell_type == "code"]


def test_template_runs_and_verifies(notebook):
    nb, path = notebook
    assert tool.problems(nb, path) == []
    assert not tool.is_stale(nb)


def test_round_trip_keeps_the_cells_and_the_outputs(notebook, tmp_path):
    nb, path = notebook
    copy = tmp_path / path.name
    shutil.copy(path, copy)
    tool.to_py(copy)
    tool.from_py(copy.with_suffix(".py"))
    again = tool.read(copy)
    assert [c.source for c in again.cells] == [c.source for c in nb.cells]
    assert [c.get("outputs") for c in again.cells] == [c.get("outputs") for c in nb.cells]
    assert tool.problems(again, copy) == []


def test_an_edited_cell_is_stale(notebook):
    nb, path = notebook
    code_cells(nb)[-1].source += "\n1 + 1"
    assert tool.is_stale(nb, code_only=True)
    assert any("code changed" in p for p in tool.problems(nb, path))


def test_a_changed_library_is_stale(notebook, monkeypatch):
    nb, _ = notebook
    monkeypatch.setattr(tool, "library_hash", lambda code: "another")
    assert tool.is_stale(nb)
    assert not tool.is_stale(nb, code_only=True)
    assert any("a module that it imports changed" in p for p in tool.problems(nb, _))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("saved in " + "/home" + "/ann/x.pt", "an absolute path"),
        ("Traceback (most recent call last)", "a traceback"),
        ("UserWarning: slow", "a warning"),
        (" 42%|####      | 5/12", "a progress bar"),
        ("<object at 0x7fedc89f5470>", "an object's address"),
    ],
)
def test_noise_in_an_output_is_seen(notebook, text, what):
    nb, path = notebook
    code_cells(nb)[-1].outputs.append(nbformat.v4.new_output("stream", name="stdout", text=text))
    assert any(what in p for p in tool.problems(nb, path))


def spoil_stamp(nb):
    nb.cells[1].source += "\n"


def spoil_footer(nb):
    nb.cells[-1].source += "\n"


def spoil_order(nb):
    code_cells(nb)[2].execution_count = 7


def spoil_output(nb):
    next(c for c in code_cells(nb) if tool.is_checked(c)).outputs = []


def spoil_error(nb):
    code_cells(nb)[3].outputs.append(nbformat.v4.new_output("error", ename="E", evalue="", traceback=[]))


def spoil_stderr(nb):
    code_cells(nb)[3].outputs.append(nbformat.v4.new_output("stream", name="stderr", text="hm"))


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (spoil_stamp, "stamped"),
        (spoil_footer, "stamped"),
        (spoil_order, "in order"),
        (spoil_output, "and no output"),
        (spoil_error, "error"),
        (spoil_stderr, "stderr"),
    ],
)
def test_each_fault_is_seen(notebook, spoil, what):
    nb, path = notebook
    spoil(nb)
    assert any(what in p for p in tool.problems(nb, path))


def test_a_failing_cell_is_reported_and_the_stored_notebook_stays(template, tmp_path):
    copy = tmp_path / "broken.ipynb"
    nb = tool.read(template)
    nb.cells = [*nb.cells[:2], nbformat.v4.new_code_cell("assert 1 == 2, 'the claim'")]
    nbformat.write(nb, copy)
    before = copy.read_text()
    assert "the claim" in tool.run(copy)
    assert copy.read_text() == before


def test_header_without_syllabus_is_refused(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("# ---\n# jupyter:\n#   mlcomp:\n#     title: T\n#     lecture: 2\n# ---\n\n# %%\n1\n")
    with pytest.raises(ValueError, match=r"lacks mlcomp\.syllabus, mlcomp\.path"):
        tool.from_py(path)
