"""Grade one submission: the student's cells in their own process, the checks here."""

import hashlib
import os
import random
import tempfile
import time
from pathlib import Path

from mlcomp.grading.alignment import aligned, defines
from mlcomp.grading.assignment import (
    STUB,
    Assignment,
    AssignmentError,
    Cell,
    Question,
    is_left_out,
    load_assignments,
    marks,
    match,
    source,
)
from mlcomp.grading.examiner import Examiner
from mlcomp.grading.kernel import Kernel, KernelDied
from mlcomp.grading.limits import Limits
from mlcomp.grading.report import CellOutput, Report, Result, tidy
from mlcomp.grading.sandbox import SandboxMissing, environment, sandboxed, worker_command
from mlcomp.grading.seccomp import filter_fd
from mlcomp.grading.submission import cells_of, content, digest


class GraderBroken(RuntimeError):
    """Nothing can be graded on this machine; no fault of a submission."""


def grade_file(
    path: Path,
    assignment: Assignment | None = None,
    *,
    sandbox: bool,
    limits: Limits | None = None,
    seed: int | None = None,
    follow: bool = True,
) -> Report:
    """Grade a notebook file; it is only read.

    Args:
        path: the submission.
        assignment: what it answers; None: found by its cells among the installed ones.
        sandbox: run the student's code in the sandbox.
        limits: time and sizes.
        seed: of the checks' random numbers; None: a new one.
        follow: let the file be a link.
    Raises:
        AssignmentError: not readable, too large, not a notebook, or of no known assignment.
        SandboxMissing: ``sandbox`` is asked for and not there.
        GraderBroken: the process for the student's code does not start.
    """
    limits = limits or Limits()
    data = content(path, limits, follow=follow)
    cells = cells_of(data, limits)
    assignment = assignment or match(cells, load_assignments())
    seed = random.SystemRandom().randrange(2**62) if seed is None else seed
    return _grade(cells, assignment, hashlib.sha256(data).hexdigest(), sandbox, limits, seed)


def grade_anything(path: Path, assignment: Assignment, sandbox: bool, limits: Limits) -> Report:
    """Grade a notebook file like :func:`grade_file`; whatever is wrong with it gets a report that says so.

    Raises:
        GraderBroken, SandboxMissing, OSError: the machine's fault, for instance a full disk; never the submission's.
    """
    try:
        return grade_file(path, assignment, sandbox=sandbox, limits=limits, follow=False)
    except AssignmentError as error:
        return nothing_graded(path, assignment, sandbox, limits, str(error))
    except (GraderBroken, SandboxMissing, OSError):
        raise
    except Exception as error:
        return nothing_graded(
            path, assignment, sandbox, limits, f"the grader failed: {type(error).__name__}: {error}"
        )


def nothing_graded(path: Path, assignment: Assignment, sandbox: bool, limits: Limits, problem: str) -> Report:
    """Return the report of a submission that could not be run at all: no points, and why."""
    problem = tidy(problem, limits.message)
    results = tuple(
        Result(q.id, q.title, q.manual, 0, q.points, f"not graded: {problem}", q.section)
        for q in assignment.questions
    )
    name = f"{assignment.folder}/{assignment.name}"
    return Report(name, assignment.sha256, digest(path, limits), 0, sandbox, 0.0, problem, results, ())


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
        with filter_fd() as fd:
            command = sandboxed(limits, slot=os.getpid(), filter_fd=fd)
            return Kernel(command, limits, env={}, cwd=Path("/"), fds=(fd,))
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
            raise GraderBroken(
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
        limits = self.kernel.limits
        self.outputs.append(CellOutput(source(cell), tidy(printed, limits.shown + 100), tidy(error, limits.message)))

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
        message = tidy(message or "", self.kernel.limits.message)
        return Result(question.id, question.title, False, 0 if message else maximum, maximum, message, section)
