"""Each graded question is linked from the notebook that trains it."""

import json
import re
from pathlib import Path

import pytest

from mlcomp.grading.assignment import load_assignments, source
from tools.lint import slug

ROOT = Path(__file__).parents[2]
QUESTIONS = [(a, question) for a in load_assignments() for question in a.questions]

# Notebooks of Lecture 4 that are still to come, or to link their questions: each leaves this set with its links.
AWAITED = {
    "06_qlora",
    "07_heads",
    "08_cofi",
    "10_weak_supervision",
    "12_sequences_and_distilbert",
    "13_synthetic_data",
}
LINK = re.compile(r"\[[Qq]uestion (?P<title>[^\]]*)\]\(\.\./\.\./book/exercises\.md#(?P<place>[\w-]+)\)")


def headings():
    """Return each assignment's folder with the heading of the page Exercises under which it stands."""
    parts = re.split(r"^## ", (ROOT / "book" / "exercises.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = ((re.search(r"\{assignment\} (\S+)/", part), part.splitlines()[0]) for part in parts)
    return {match[1]: heading for match, heading in found if match}


def links(path):
    """Return the (title of a question, anchor) that a notebook links to."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "\n".join(source(cell) for cell in cells if cell["cell_type"] == "markdown")
    return {(found["title"], found["place"]) for found in LINK.finditer(text)}


def expected(assignment, question):
    """Return how a link to a question is written: its number, its title, the assignment's heading."""
    number, title = question.title.split(". ", 1)
    return f"{number}, *{title}*", slug(headings()[assignment.folder])


def cases():
    """Return a case for each question; that of an awaited notebook has to fail, so that none stays in the set."""
    for assignment, question in QUESTIONS:
        awaited = Path(question.section).name in AWAITED
        marks = [pytest.mark.xfail(strict=True, reason=f"{question.section} has no link yet")] if awaited else []
        yield pytest.param(assignment, question, marks=marks, id=f"{assignment.folder} {question.id}")


@pytest.mark.parametrize(("assignment", "question"), list(cases()))
def test_the_notebook_that_trains_a_question_links_to_it(assignment, question):
    notebook = ROOT / f"{question.section}.ipynb"
    assert notebook.exists(), f"{question.id} says to read {question.section}"
    assert expected(assignment, question) in links(notebook)


def test_no_notebook_links_to_a_question_that_is_not_there():
    there = {expected(*pair) for pair in QUESTIONS}
    assert {link for path in ROOT.glob("lectures/*/*.ipynb") for link in links(path)} <= there
