"""Each question rejects its known wrong answers, and only they lose points."""

import random

import pytest

from mlcomp.grading.assignment import is_left_out, marks, source
from mlcomp.grading.examiner import Examiner
from mlcomp.grading.kernel import Kernel
from mlcomp.grading.limits import Limits
from mlcomp.grading.sandbox import environment, worker_command
from tests.exercises.wrong_answers import WRONG

pytestmark = pytest.mark.slow
CASES = [(question, name, code) for question, cases in WRONG.items() for name, code in cases]


@pytest.fixture(scope="module")
def graded(assignment, tmp_path_factory):
    """The reference's process and its examiner; no sandbox, as this is our own code."""
    limits = Limits(call=4.0, submission=1200.0)
    with Kernel(worker_command(), limits, env=environment(), cwd=tmp_path_factory.mktemp("work")) as kernel:
        examiner = Examiner(assignment, kernel, seed=0)
        kernel.start()
        for cell in assignment.cells:
            if cell["cell_type"] == "code" and not marks(cell).get("grade") and not is_left_out(cell):
                assert kernel.run(source(cell))[0] == {}
        yield examiner


def questions(assignment):
    return [question for question in assignment.questions if not question.manual]


def test_every_question_has_at_least_five_wrong_answers(assignment):
    assert set(WRONG) == {question.id for question in questions(assignment)}
    assert min(map(len, WRONG.values())) >= 5


@pytest.mark.parametrize("seed", range(3))
def test_the_reference_passes_every_question(graded, assignment, seed):
    graded.seed = seed
    assert {q.id: graded.examine(q) for q in questions(assignment)} == {q.id: None for q in questions(assignment)}


@pytest.mark.parametrize(("question", "name", "code"), CASES, ids=[f"{q}: {n}" for q, n, _ in CASES])
def test_a_wrong_answer_loses_exactly_its_points(graded, assignment, note, question, name, code):
    graded.seed = random.SystemRandom().randrange(2**62)
    reference = next(c for c in assignment.cells if marks(c).get("grade_id") == f"{question}-answer")
    assert graded.kernel.run(code)[0] == {}
    try:
        found = {q.id: graded.examine(q) for q in questions(assignment)}
    finally:
        graded.kernel.run(source(reference))
    note("Wrong answers and what the student is told", question, name, found[question])
    assert found[question] is not None, f"accepted with seed {graded.seed}"
    assert [q for q, message in found.items() if message is not None] == [question]
