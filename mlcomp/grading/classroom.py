"""Grade a class: every submission once, several at a time, with progress; a killed run goes on where it was."""

import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

from mlcomp.grading.assignment import Assignment
from mlcomp.grading.grade import grade_anything, nothing_graded, sha256
from mlcomp.grading.gradebook import Course, record, register
from mlcomp.grading.limits import Limits
from mlcomp.grading.report import Report

_STUDENT = re.compile(r"[A-Za-z0-9_.@-]+")


def submissions(folder: Path) -> dict[str, Path]:
    """Return student → notebook of a folder that holds STUDENT.ipynb or STUDENT/anything.ipynb, the newest
    of several.

    Raises:
        ValueError: no notebook there, or a student's name with characters other than letters, digits, ``_ . @ -``.
    """
    found: dict[str, Path] = {}
    for path in [*sorted(folder.glob("*.ipynb")), *sorted(folder.glob("*/*.ipynb"))]:
        student = path.stem if path.parent == folder else path.parent.name
        if not _STUDENT.fullmatch(student) or student.startswith("."):
            raise ValueError(f"{path}: a student's name has letters, digits and _ . @ - only, got {student!r}")
        if student not in found or path.stat().st_mtime > found[student].stat().st_mtime:
            found[student] = path
    if not found:
        raise ValueError(f"{folder} holds no STUDENT.ipynb and no STUDENT/….ipynb")
    return found


def grade_class(
    course: Course,
    assignment: Assignment,
    handed_in: dict[str, Path],
    *,
    sandbox: bool = True,
    jobs: int = 2,
    regrade: bool = False,
    limits: Limits | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Report]:
    """Grade the submissions that have no report for their present content, and enter all into the gradebook.

    Args:
        course: where reports and gradebook are.
        assignment: what the submissions answer.
        handed_in: student → notebook file; only read.
        sandbox: run the students' code in the sandbox.
        jobs: how many at a time.
        regrade: grade again what has a report.
        limits: for each submission.
        say: called with each line of progress.
    Returns:
        student → report.
    """
    limits = limits or Limits()
    register(course, assignment)
    reports: dict[str, Report] = {}
    for student, path in handed_in.items():
        report = None if regrade else _present(course, assignment, student, path)
        if report is not None:
            reports[student] = report
            record(course, assignment, student, path, report)
    todo = {student: path for student, path in handed_in.items() if student not in reports}
    if reports:
        say(f"{len(reports)} graded before, {len(todo)} to do")
    start = time.monotonic()
    for student, report in _graded(assignment, todo, sandbox, jobs, limits):
        _write(course.report(assignment.folder, student), report.to_json())
        record(course, assignment, student, handed_in[student], report)
        reports[student] = report
        done = len(reports) - len(handed_in) + len(todo)
        left = (time.monotonic() - start) / done * (len(todo) - done)
        note = f"  ({report.problem})" if report.problem else ""
        say(f"[{done}/{len(todo)}] {student}: {report.points} of {report.maximum}{note}, {left:.0f} s left")
    return reports


def _graded(
    assignment: Assignment, todo: dict[str, Path], sandbox: bool, jobs: int, limits: Limits
) -> Iterator[tuple[str, Report]]:
    """Yield each student's report as it is ready; a grader process that dies costs one submission at most."""
    # spawn: a forked child would inherit the threads and locks of torch and of the database.
    context = get_context("spawn")
    left = dict(todo)
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        tasks: dict[Future[Report], str] = {
            pool.submit(grade_anything, path, assignment, sandbox, limits): student for student, path in todo.items()
        }
        try:
            for task in as_completed(tasks):
                report = task.result()
                left.pop(tasks[task])
                yield tasks[task], report
        except BrokenProcessPool:
            pass
    for student, path in left.items():  # one of them killed its grader: each alone, to find out which
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            try:
                yield student, pool.submit(grade_anything, path, assignment, sandbox, limits).result()
            except BrokenProcessPool:
                yield student, nothing_graded(path, assignment, sandbox, "the grader's own process died")


def _present(course: Course, assignment: Assignment, student: str, path: Path) -> Report | None:
    """Return the report of this very submission under this very source, if there is one."""
    try:
        report = Report.from_json(course.report(assignment.folder, student).read_text())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    same = sha256(path) == report.submission_sha256 and assignment.sha256 == report.source_sha256
    return report if same else None


def _write(path: Path, text: str) -> None:
    """Write a file that is complete or not there, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    with draft.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
