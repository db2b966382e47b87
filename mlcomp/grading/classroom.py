"""Grade a class: every submission once, several at a time, with progress; a killed run goes on where it was."""

import hashlib
import os
import re
import time
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

from mlcomp.grading.assignment import Assignment
from mlcomp.grading.grade import grade_anything, nothing_graded
from mlcomp.grading.gradebook import Course, entered, is_entered, record, register
from mlcomp.grading.lifetime import end_with
from mlcomp.grading.limits import Limits
from mlcomp.grading.report import Report, printable
from mlcomp.grading.submission import digest

# What macOS and Jupyter leave beside the files that they show.
_LEFTOVERS = {"__MACOSX"}
_NAME = 60  # characters of a name in the gradebook; in UTF-8 with an ending it still fits a file name


def submissions(folder: Path) -> dict[str, Path]:
    """Return student → file of a folder that holds STUDENT.ipynb or STUDENT/anything.ipynb, the newest of several.

    Hidden files and folders, and the rest that macOS and Jupyter leave, are passed over. Links are not followed:
    they stand for themselves here, and :func:`content` refuses them.

    Raises:
        ValueError: no notebook there.
    """
    found: dict[str, tuple[float, Path]] = {}
    root = folder.resolve()
    for entry in _shown(root):
        if entry.is_symlink() and os.path.isdir(entry):  # a student's folder that leads elsewhere
            inside, name = [entry], entry.name
        elif entry.is_dir(follow_symlinks=False):
            inside, name = [e for e in _shown(entry.path) if _is_notebook(e)], entry.name
        else:
            inside, name = [entry] if _is_notebook(entry) else [], entry.name.removesuffix(".ipynb")
        for file in inside:
            new = (file.stat(follow_symlinks=False).st_mtime, Path(file.path))
            student = student_id(name)
            found[student] = max(found.get(student, new), new)
    if not found:
        raise ValueError(f"{folder} holds no STUDENT.ipynb and no STUDENT/….ipynb")
    return {student: path for student, (_, path) in sorted(found.items())}


def name_of(path: Path, folder: Path) -> str:
    """Return the name by which a file of :func:`submissions` was handed in, before it was made an id."""
    first, *inside = path.relative_to(folder.resolve()).parts
    return first if inside else first.removesuffix(".ipynb")


def _shown(folder: Path | str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        kept = [e for e in entries if not e.name.startswith(".") and e.name not in _LEFTOVERS]
    return sorted(kept, key=lambda entry: entry.name)


def _is_notebook(entry: os.DirEntry[str]) -> bool:
    return entry.name.endswith(".ipynb") and not entry.is_dir(follow_symlinks=False)


def student_id(name: str) -> str:
    """Return the id in the gradebook of the student whose file or folder has this name.

    Letters and digits of every script and ``_ . @ -`` stay. In a name with anything else, with a sign in front or of
    more than 60 characters the rest is replaced, and a checksum of the name put behind, so that no two are taken for
    one: ids go into web pages, tables and file names.
    """
    name = unicodedata.normalize("NFC", name)
    kept = "".join(c if unicodedata.category(c)[0] in "LMN" or c in "_.@-" else "_" for c in name)
    kept = re.sub(r"^[.@-]+", "_", kept)
    if kept == name and len(name) <= _NAME:
        return name
    checksum = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:8]
    return f"{kept[: _NAME - 9].strip('_') or 'student'}-{checksum}"


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
    Raises:
        RuntimeError: some reports could not be entered into the gradebook; all others are in it.
    """
    limits = limits or Limits()
    register(course, assignment)
    reports: dict[str, Report] = {}
    failed: dict[str, str] = {}

    def enter(student: str, report: Report) -> None:
        reports[student] = report
        try:
            record(course, assignment, student, handed_in[student], report, limits)
        except Exception as error:  # one student's; the others' points wait for nothing
            failed[student] = f"{type(error).__name__}: {error}"

    before = {
        student: report
        for student, path in handed_in.items()
        if not regrade and (report := _present(course, assignment, student, path, limits))
    }
    there = entered(course, assignment)
    for student, report in before.items():
        if is_entered(course, assignment, student, report, there):
            reports[student] = report
        else:
            enter(student, report)
    todo = {student: path for student, path in handed_in.items() if student not in before}
    if before:
        say(f"{len(before)} graded before, {len(todo)} to do")
    start = time.monotonic()
    for done, (student, report) in enumerate(_graded(assignment, todo, sandbox, jobs, limits), 1):
        _write(course.report(assignment.folder, student), report.to_json())
        enter(student, report)
        left = (time.monotonic() - start) / done * (len(todo) - done)
        note = f"  ({report.problem})" if report.problem else ""
        line = f"[{done}/{len(todo)}] {student}: {report.points} of {report.maximum}{note}, {left:.0f} s left"
        say(printable(line).replace("\n", " "))
    if failed:
        lines = "\n".join(f"  {student}: {problem}" for student, problem in sorted(failed.items()))
        raise RuntimeError(f"graded, but not in the gradebook (the same command tries again):\n{lines}")
    return reports


def _graded(
    assignment: Assignment, todo: dict[str, Path], sandbox: bool, jobs: int, limits: Limits
) -> Iterator[tuple[str, Report]]:
    """Yield each student's report as it is ready; a grader process that dies costs one submission at most."""
    left = dict(todo)
    with _pool(jobs) as pool:
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
        finally:  # stopped by the teacher, or nothing can be graded here: the others are not begun
            pool.shutdown(cancel_futures=True)
    for student, path in left.items():  # one of them killed its grader: each alone, to find out which
        with _pool(1) as pool:
            try:
                yield student, pool.submit(grade_anything, path, assignment, sandbox, limits).result()
            except BrokenProcessPool:
                yield student, nothing_graded(path, assignment, sandbox, limits, "the grader's own process died")


def _pool(jobs: int) -> ProcessPoolExecutor:
    """Return a pool whose processes end with this one, however it ends."""
    # spawn: a forked child would inherit the threads and locks of torch and of the database.
    return ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=end_with, initargs=(os.getpid(),))


def _present(course: Course, assignment: Assignment, student: str, path: Path, limits: Limits) -> Report | None:
    """Return the report of this very submission under this very source, if there is one."""
    try:
        report = Report.from_json(course.report(assignment.folder, student).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    same = digest(path, limits) == report.submission_sha256 and assignment.sha256 == report.source_sha256
    return report if same else None


def _write(path: Path, text: str) -> None:
    """Write a file that is complete or not there, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
