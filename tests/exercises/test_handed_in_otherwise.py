"""Answers that stand where nobody expects them, and cells that only run in Jupyter, still count."""

import copy
import json

import pytest

from mlcomp.grading import cli
from mlcomp.grading.alignment import aligned
from mlcomp.grading.assignment import STUB, Assignment, AssignmentError, marks, parse, source
from mlcomp.grading.grade import grade_file
from mlcomp.grading.report import Report, Result, page, table

GOOD = "def obd_saliency(weight, hessian):\n    return 0.5 * hessian.diagonal() * weight.square()\n"


def place(book, name):
    return next(i for i, c in enumerate(book["cells"]) if c["metadata"].get("nbgrader", {}).get("grade_id") == name)


def own(text, kind="code"):
    return {"cell_type": kind, "metadata": {}, "source": text}


def order(book, assignment):
    """The names of the cells that are run or graded, None for the student's own."""
    return [marks(cell).get("grade_id") for cell in aligned(book["cells"], assignment)]


def written(book, assignment):
    (cell,) = (c for c in aligned(book["cells"], assignment) if marks(c).get("grade_id") == "derivation")
    return source(cell)


@pytest.fixture
def book(empty):
    return copy.deepcopy(empty)


@pytest.mark.parametrize("before", [False, True])
def test_a_written_answer_in_a_copy_of_its_cell_counts(book, assignment, before):
    here = place(book, "derivation")
    second = {**copy.deepcopy(book["cells"][here]), "source": "By Lagrange."}
    book["cells"].insert(here + (not before), second)
    assert written(book, assignment) == "By Lagrange."


def test_a_split_written_answer_is_put_together(book, assignment):
    here = place(book, "derivation")
    picture = {"image/png": "aGFuZA=="}
    second = {**copy.deepcopy(book["cells"][here]), "source": "Second half.", "attachments": {"p.png": picture}}
    book["cells"][here]["source"] = "First half."
    book["cells"].insert(here + 1, second)
    assert written(book, assignment) == "First half.\n\nSecond half."
    (cell,) = (c for c in aligned(book["cells"], assignment) if marks(c).get("grade_id") == "derivation")
    assert cell["attachments"] == {"p.png": picture}


@pytest.mark.parametrize("deleted", [False, True])
def test_a_written_answer_beside_its_cell_counts(book, assignment, deleted):
    here = place(book, "derivation")
    book["cells"].insert(here + 1, own("The multiplier is w/[H⁻¹]_pp.", "markdown"))
    if deleted:
        del book["cells"][here]
    assert written(book, assignment) == "The multiplier is w/[H⁻¹]_pp."
    assert not any(source(c).startswith("The mult") and not marks(c) for c in aligned(book["cells"], assignment))


def test_an_untouched_written_answer_is_none(book, assignment):
    assert written(book, assignment) == STUB
    book["cells"].append(own("Thanks for the course.", "markdown"))  # far from the question
    assert written(book, assignment) == STUB


def test_a_filled_copy_counts_wherever_it_stands(book, assignment):
    here = place(book, "obd-saliency-answer")
    for offset in (0, 1, 2):  # before the cell as it was handed out, after it, after the check
        trial = copy.deepcopy(book)
        trial["cells"].insert(here + offset, {**copy.deepcopy(book["cells"][here]), "source": GOOD})
        cells = aligned(trial["cells"], assignment)
        texts = [source(c) for c in cells]
        check = next(i for i, c in enumerate(cells) if marks(c).get("grade_id") == "obd-saliency")
        assert texts.index(GOOD) < check
        assert not any("def obd_saliency" in text and "NotImplementedError" in text for text in texts)


def test_an_own_cell_after_the_check_counts_and_a_later_experiment_changes_nothing(book, reference, assignment):
    here = place(book, "obd-saliency")
    book["cells"].insert(here + 1, own(GOOD))
    names = order(book, assignment)
    assert names.index("obd-saliency") == here + 1  # the student's cell is before it now
    done = copy.deepcopy(reference)
    done["cells"].insert(place(done, "obd-saliency") + 1, own("def obd_saliency(weight, hessian):\n    return 0\n"))
    assert order(done, assignment).index("obd-saliency") == place(reference, "obd-saliency")


def test_a_deleted_answer_cell_leaves_no_hole(book, assignment):
    here = place(book, "obd-saliency-answer")
    book["cells"][here] = own(GOOD)
    cells = aligned(book["cells"], assignment)
    assert source(cells[here]) == GOOD
    assert sorted(filter(None, order(book, assignment))) == sorted(assignment.by_id)


@pytest.mark.slow
def test_what_only_runs_in_jupyter_costs_nothing_and_what_stops_a_cell_is_named(book, tmp_path):
    fill = {
        "obd-saliency-answer": "%matplotlib inline\n!pip install pandas\nfiles = !ls\n%load_ext autoreload\n" + GOOD,
        "obs-step-answer": "import a_package_nobody_has\n\n\ndef obs_step(weight, hessian):\n    return weight\n",
        "inverse-update-answer": "rate = float(input('rate'))\n\n\ndef remove_from_inverse(inverse, p):\n    ...\n",
        "exact-obs-answer": "def exact_obs_row(weight, hessian, k):\n    return weight +\n",
    }
    for name, text in fill.items():
        book["cells"][place(book, name)]["source"] = text
    path = tmp_path / "work.ipynb"
    path.write_text(json.dumps(book))
    report = grade_file(path, sandbox=False, seed=1)
    found = {r.id: r for r in report.results}
    assert found["obd-saliency"].points == 2, found["obd-saliency"].message
    assert "a_package_nobody_has" in found["obs-step"].message
    assert "not installed where notebooks are graded" in found["obs-step"].message
    assert "input() waits for someone to type" in found["inverse-update"].message
    assert found["exact-obs"].message == (
        "exact_obs_row is not defined: its cell stops with SyntaxError: invalid syntax (line 2)"
    )
    assert found["pattern"].message == "not answered yet"
    again = found["pattern"].section  # a path, or the address of the notebook where the book has one
    assert "lectures/2_optimal_brain_compression/04_patterns" in again and f"read again: {again}" in table(report)


def test_where_to_read_again_is_an_address_where_the_set_up_cell_names_one():
    check = {"grade_id": "q", "grade": True, "solution": False, "points": 2}
    graded = {
        "cell_type": "code",
        "metadata": {"nbgrader": check, "mlcomp": {"section": "lectures/x"}},
        "source": "1",
    }
    for published, again in {
        "[]": "lectures/x",
        '["git+https://github.com/a/b@v1.0"]': "https://github.com/a/b/blob/HEAD/lectures/x.ipynb",
    }.items():
        cells = ({"cell_type": "code", "metadata": {}, "source": f"PUBLISHED = {published}"}, graded)
        (question,) = Assignment("f", "n", cells, "").questions
        assert question.section == again
        result = Result("q", "T", False, 0, 2, "", question.section)
        linked = f'<a href="{again}">Read again</a>' in page(Report("n", "", "", 1, False, 0.0, "", (result,), ()))
        assert linked == again.startswith("https://")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "the file is empty"),
        ("<!doctype html><p>x", "a web page"),
        ("def f(): pass", "not what Jupyter or Colab saves"),
        ("PK\x03\x04", "not what Jupyter or Colab saves"),
        ('{"worksheets": []}', "no list of cells"),
        ('"text"', "no list of cells"),
        ('{"cells": [3]}', "malformed"),
    ],
)
def test_a_file_that_is_no_notebook_is_told_in_a_plain_sentence(text, told, tmp_path, capsys, monkeypatch):
    with pytest.raises(AssignmentError, match="not a notebook") as error:
        parse(text.encode())
    assert told in str(error.value) and "Error" not in str(error.value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.ipynb").write_text(text)
    assert cli.main(["x.ipynb"]) == 1
    assert told in capsys.readouterr().err
