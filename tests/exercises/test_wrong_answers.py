"""Each question rejects its known wrong answers, and only they lose points."""

import random

import pytest

from mlcomp.grading.assignment import is_left_out, load_assignments, marks, source
from mlcomp.grading.examiner import Examiner
from mlcomp.grading.kernel import Kernel
from mlcomp.grading.limits import Limits
from mlcomp.grading.sandbox import environment, worker_command
from tests.exercises.wrong_answers import WRONG

pytestmark = pytest.mark.slow
ASSIGNMENTS = {assignment.folder: assignment for assignment in load_assignments()}
CASES = [(folder, q, name, code) for folder, w in WRONG.items() for q, cases in w.items() for name, code in cases]


@pytest.fixture(scope="module", params=sorted(WRONG))
def graded(request, tmp_path_factory):
    """The reference's process and its examiner, for each assignment; no sandbox, as this is our own code."""
    limits, assignment = Limits(call=4.0, submission=1200.0), ASSIGNMENTS[request.param]
    with Kernel(worker_command(), limits, env=environment(), cwd=tmp_path_factory.mktemp("work")) as kernel:
        examiner = Examiner(assignment, kernel, seed=0)
        kernel.start()
        for cell in assignment.cells:
            if cell["cell_type"] == "code" and not marks(cell).get("grade") and not is_left_out(cell):
                assert kernel.run(source(cell))[0] == {}
        yield examiner


def questions(assignment):
    return [question for question in assignment.questions if not question.manual]


@pytest.mark.parametrize("folder", sorted(ASSIGNMENTS))
def test_every_question_has_at_least_five_wrong_answers(folder):
    assert set(WRONG[folder]) == {question.id for question in questions(ASSIGNMENTS[folder])}
    assert min(map(len, WRONG[folder].values())) >= 5


def test_no_two_assignments_share_the_name_of_a_cell():
    """A submission is recognized by its cells' names."""
    names = [name for assignment in ASSIGNMENTS.values() for name in assignment.by_id]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("seed", range(3))
def test_the_reference_passes_every_question(graded, seed):
    graded.seed = seed
    asked = questions(graded.assignment)
    assert {q.id: graded.examine(q) for q in asked} == {q.id: None for q in asked}


@pytest.mark.parametrize(
    ("graded", "question", "name", "code"),
    CASES,
    ids=[f"{folder} {q}: {n}" for folder, q, n, _ in CASES],
    indirect=["graded"],
)
def test_a_wrong_answer_loses_exactly_its_points(graded, note, question, name, code):
    graded.seed = random.SystemRandom().randrange(2**62)
    asked = questions(graded.assignment)
    reference = next(c for c in graded.assignment.cells if marks(c).get("grade_id") == f"{question}-answer")
    assert graded.kernel.run(code)[0] == {}
    try:
        found = {q.id: graded.examine(q) for q in asked}
    finally:
        graded.kernel.run(source(reference))
    note("Wrong answers and what the student is told", question, name, found[question])
    assert found[question] is not None, f"accepted with seed {graded.seed}"
    assert [q for q, message in found.items() if message is not None] == [question]
