"""Each question rejects its known wrong answers, says what is wrong with them, and only they lose points."""

import math
import random
import re
from contextlib import ExitStack
from dataclasses import replace
from functools import cache

import pytest

from mlcomp.grading.assignment import is_left_out, load_assignments, marks, source
from mlcomp.grading.examiner import Examiner
from mlcomp.grading.kernel import Kernel
from mlcomp.grading.limits import Limits
from mlcomp.grading.sandbox import environment, worker_command
from tests.exercises.wrong_answers import WRONG
from tests.exercises.wrong_answers.messages import messages

pytestmark = pytest.mark.slow
ASSIGNMENTS = {assignment.folder: assignment for assignment in load_assignments()}
CASES = [(folder, q, *case) for folder, w in WRONG.items() for q, cases in w.items() for case in cases]

# What a careful student could have known: the visible checks say it.
VISIBLE = {
    ("affine", "0/0 in a row of zeros"),
    ("affine", "the zero code comes in before rounding"),
    ("affine", "zero is not on the grid"),
    ("bits-per-weight", "rounds the groups down"),
    ("budget", "greedy: best gain for its cost first"),
    ("correct-weight", "divides by n − 1"),
    ("lloyd-step", "0/0 in an empty cell"),
    ("lloyd-step", "an empty level goes to 0"),
    ("magnitude-mask", "threshold: ties fall together"),
    ("normalized-masks", "0/0 in a layer of zeros"),
    ("normalized-masks", "threshold: ties fall together"),
    ("pattern-mask", "always 2:4"),
    ("pattern-mask", "n kept"),
    ("pattern-mask", "threshold: ties fall together"),
    ("step-gradient", "the edges count as outside"),
}

# Two ways to find one mistake; which of them does, the random numbers decide.
EITHER = {
    "best for less than the budget: a choice that costs exactly the budget is allowed",
    ": 'at most' includes exactly the budget, and costs are not rounded",
    "): check U, and which errors come in",
}


@pytest.fixture(scope="module")
def graders(tmp_path_factory):
    """The reference's process and its examiner by assignment, each started once; no sandbox: this is our own code."""
    # Not a fixture with parameters: where they come from the tests, pytest would start a process for each test anew.
    with ExitStack() as running:

        @cache
        def grader(folder):
            limits, assignment = Limits(call=4.0, submission=math.inf), ASSIGNMENTS[folder]
            cwd = tmp_path_factory.mktemp("work")
            kernel = running.enter_context(Kernel(worker_command(), limits, env=environment(), cwd=cwd))
            examiner = Examiner(assignment, kernel, seed=0)
            kernel.start()
            for cell in assignment.cells:
                if cell["cell_type"] == "code" and not marks(cell).get("grade") and not is_left_out(cell):
                    assert kernel.run(source(cell))[0] == {}
            return examiner

        yield grader


@pytest.fixture
def graded(graders, folder):
    return graders(folder)


def visible(graded, name):
    """What the checks that the student has say to one question."""
    hidden = re.compile("### BEGIN HIDDEN TESTS.*?### END HIDDEN TESTS", re.S)
    cells = tuple({**cell, "source": hidden.sub("", source(cell))} for cell in graded.assignment.cells)
    examiner = Examiner(replace(graded.assignment, cells=cells), graded.kernel, seed=graded.seed)
    return examiner.examine(next(q for q in questions(examiner.assignment) if q.id == name))


def questions(assignment):
    return [question for question in assignment.questions if not question.manual]


@pytest.mark.parametrize("folder", sorted(ASSIGNMENTS))
def test_every_question_has_at_least_five_wrong_answers(folder):
    assert set(WRONG[folder]) == {question.id for question in questions(ASSIGNMENTS[folder])}
    assert min(map(len, WRONG[folder].values())) >= 5


@pytest.mark.parametrize(
    ("folder", "question"), [(folder, question) for folder, wrong in WRONG.items() for question in wrong]
)
def test_every_message_has_a_wrong_answer_that_gets_it(folder, question):
    told = [text for _, _, text in WRONG[folder][question] if text]
    said = {text.strip() for text in messages(ASSIGNMENTS[folder], question)} - EITHER
    assert {text for text in said if not any(text in answer or answer in text for answer in told)} == set()


def test_what_must_be_visible_names_wrong_answers():
    assert {(question, name) for _, question, name, _, _ in CASES} >= VISIBLE


def test_no_two_assignments_share_the_name_of_a_cell():
    """A submission is recognized by its cells' names."""
    names = [name for assignment in ASSIGNMENTS.values() for name in assignment.by_id]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("folder", sorted(WRONG))
@pytest.mark.parametrize("seed", range(3))
def test_the_reference_passes_every_question(graded, seed):
    graded.seed = seed
    asked = questions(graded.assignment)
    assert {q.id: graded.examine(q) for q in asked} == {q.id: None for q in asked}


@pytest.mark.parametrize(
    ("folder", "question", "name", "code", "told"),
    CASES,
    ids=[f"{folder} {q}: {n}" for folder, q, n, _, _ in CASES],
)
def test_a_wrong_answer_loses_exactly_its_points(graded, note, question, name, code, told):
    graded.seed = random.randrange(2**62)  # the weekly run moves it
    asked = questions(graded.assignment)
    wrong = next(q for q in asked if q.id == question)
    reference = next(c for c in graded.assignment.cells if marks(c).get("grade_id") == f"{question}-answer")
    assert graded.kernel.run(code)[0] == {}
    try:
        found = {q.id: graded.examine(q) for q in asked}
        seen = visible(graded, question)
        said = [found[question]]
        while told not in (said[0] or "") and len(said) < 5:  # it may look like another mistake by chance, but rarely
            graded.seed = random.randrange(2**62)
            said.append(graded.examine(wrong))
    finally:
        graded.kernel.run(source(reference))
    note("Wrong answers and what the student is told", question, name, found[question])
    assert None not in said, f"accepted with seed {graded.seed}"
    assert [q for q, message in found.items() if message is not None] == [question]
    assert len(said) == 1 or sum(told in message for message in said) >= 3, said
    assert seen is not None or (question, name) not in VISIBLE, f"only hidden checks see it, with seed {graded.seed}"
