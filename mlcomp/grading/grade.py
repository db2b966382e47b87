"""Grade one submission: the student's cells in their own process, the checks here."""

import hashlib
import os
import random
import tempfile
import time
from pathlib import Path

from mlcomp.grading.assignment import (
    STUB,
    Assignment,
    AssignmentError,
    Cell,
    Question,
    aligned,
    defines,
    is_left_out,
    load_assignments,
    marks,
    match,
    parse,
    source,
)
from mlcomp.grading.examiner import Examiner
from mlcomp.grading.kernel import Kernel, KernelDied
from mlcomp.grading.limits import Limits
from mlcomp.grading.report import CellOutput, Report, Result
from mlcomp.grading.sandbox import environment, sandboxed, worker_command


def grade_file(
    path: Path,
    assignment: Assignment | None = None,
    *,
    sandbox: bool,
    limits: Limits | None = None,
    seed: int | None = None,
) -> Report:
    """Grade a notebook file; it is only read.

    Args:
        path: the submission.
        assignment: what it answers; None: found by its cells among the installed ones.
        sandbox: run the student's code in the sandbox.
        limits: time and sizes.
        seed: of the checks' random numbers; None: a new one.
    Raises:
        AssignmentError: too large, not a notebook, or of no known assignment.
        SandboxMissing: ``sandbox`` is asked for and not there.
    """
    limits = limits or Limits()
    if path.stat().st_size > limits.notebook:
        raise AssignmentError(f"the file is larger than {limits.notebook >> 20} MiB: clear its outputs and save it")
    data = path.read_bytes()
    cells = parse(data)
    assignment = assignment or match(cells, load_assignments())
    seed = random.SystemRandom().randrange(2**62) if seed is None else seed
    return _grade(cells, assignment, hashlib.sha256(data).hexdigest(), sandbox, limits, seed)


def grade_anything(path: Path, assignment: Assignment, sandbox: bool, limits: Limits) -> Report:
    """Grade a notebook file like :func:`grade_file`; one that cannot be read gets a report that says so."""
    try:
        return grade_file(path, assignment, sandbox=sandbox, limits=limits)
    except AssignmentError as error:
        return nothing_graded(path, assignment, sandbox, str(error))


def nothing_graded(path: Path, assignment: Assignment, sandbox: bool, problem: str) -> Report:
    """Return the report of a submission that could not be run at all: no points, and why."""
    results = tuple(
        Result(q.id, q.title, q.manual, 0, q.points, f"not graded: {problem}", q.section)
        for q in assignment.questions
    )
    name = f"{assignment.folder}/{assignment.name}"
    return Report(name, assignment.sha256, sha256(path), 0, sandbox, 0.0, problem, results, ())


def sha256(path: Path) -> str:
    """Return the hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _grade(
    cells: list[Cell], assignment: Assignment, sha256: str, sandbox: bool, limits: Limits, seed: int
) -> Report:
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mlcomp-grade-") as scratch, _kernel(sandbox, limits, scratch) as kernel:
        run = _Run(assignment, kernel, seed)
        for cell in aligned(cells, assignment):
            run.take(cell)
    return Report(
        assignment=f"{assignment.folder}/{assignment.name}",
        source_sha256=assignment.sha256,
        submission_sha256=sha256,
        seed=seed,
        sandboxed=sandbox,
        seconds=round(time.monotonic() - start, 2),
        problem=run.problem,
        results=tuple(run.results[question.id] for question in assignment.questions),
        outputs=tuple(run.outputs),
    )


def _kernel(sandbox: bool, limits: Limits, scratch: str) -> Kernel:
    if sandbox:
        return Kernel(sandboxed(limits, slot=os.getpid()), limits, env=dict(os.environ), cwd=Path("/"))
    return Kernel(worker_command(), limits, env=environment(), cwd=Path(scratch))


class _Run:
    """One pass over a submission's cells."""

    def __init__(self, assignment: Assignment, kernel: Kernel, seed: int) -> None:
        self.assignment, self.kernel = assignment, kernel
        self.questions = {question.id: question for question in assignment.questions}
        self.results: dict[str, Result] = {}
        self.outputs: list[CellOutput] = []
        self.problem = ""
        self.examiner = Examiner(assignment, kernel, seed=seed)  # while the process starts
        try:
            kernel.start()
        except KernelDied as death:  # before any code of the student's: not the student's fault, so not a grade
            raise RuntimeError(
                f"the process that runs submissions does not start, so nothing was graded: {death}"
            ) from death

    def take(self, cell: Cell) -> None:
        question = self.questions.get(marks(cell).get("grade_id", ""))
        if question is not None:
            self.results[question.id] = self._result(question, cell)
        elif cell["cell_type"] == "code" and not is_left_out(cell):
            self._run(cell)

    def _run(self, cell: Cell) -> None:
        printed, error = "", ""
        if not self.problem:
            try:
                reply, printed = self.kernel.run(source(cell))
                error = str(reply.get("error", ""))
            except KernelDied as death:
                self.problem = error = str(death)
                printed = self.kernel.printed()
        for question in self.questions.values():
            for name in question.functions + question.values:
                if defines(source(cell), (name,)):
                    self.examiner.stopped[name] = error
        self.outputs.append(CellOutput(source(cell), printed, error))

    def _result(self, question: Question, cell: Cell) -> Result:
        maximum, section = question.points, question.section
        if question.manual:
            # An empty answer, or the one that was handed out, is worth nothing: no one need look at it.
            empty = source(cell).strip() in ("", STUB)
            points, note = (0, "not answered yet") if empty else (None, "")
            return Result(question.id, question.title, True, points, maximum, note, section)
        message: str | None = f"not graded: {self.problem}"
        if not self.problem:
            try:
                message = self.examiner.examine(question)
            except KernelDied as death:
                self.problem = str(death)
                message = f"your code ended its process: {self.problem}"
        return Result(question.id, question.title, False, 0 if message else maximum, maximum, message or "", section)
