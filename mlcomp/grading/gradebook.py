"""The reports of a class in nbgrader: its gradebook, its formgrader for written answers, its feedback.

nbgrader never sees a file that a student made. It gets a clean copy (the source's structure with the student's
answers, the written ones as :mod:`mlcomp.grading.written` makes them harmless), and instead of executing it, it takes
outcomes and outputs from the report. What the gradebook holds is read from the gradebook itself, never from notes
beside it: one that was lost or restored from an older copy is filled again.
"""

import csv
import hashlib
import io
import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlcomp.grading.assignment import Assignment, is_left_out, marks, source, source_root
from mlcomp.grading.extra import require_nbgrader
from mlcomp.grading.limits import Limits
from mlcomp.grading.report import Report, no_formula

require_nbgrader()

import nbformat  # noqa: E402  (only after the clear error above)
from nbformat.notebooknode import NotebookNode  # noqa: E402
from nbgrader.api import Gradebook, MissingEntry  # noqa: E402
from nbgrader.converters import Autograde, GenerateAssignment, GenerateFeedback  # noqa: E402
from nbgrader.coursedir import CourseDirectory  # noqa: E402
from nbgrader.preprocessors import NbGraderPreprocessor  # noqa: E402
from sqlalchemy.exc import SQLAlchemyError  # noqa: E402
from traitlets.config import Config  # noqa: E402

from mlcomp.grading.written import clean_copy  # noqa: E402

# GradeOutside stands in the place of nbgrader's Execute, which would run submissions with the teacher's rights.
AUTOGRADE_STEPS = [
    "mlcomp.grading.gradebook.GradeOutside",
    "nbgrader.preprocessors.LimitOutput",
    "nbgrader.preprocessors.SaveAutoGrades",
    "nbgrader.preprocessors.AssignLatePenalties",
    "nbgrader.preprocessors.CheckCellMetadata",
]


@dataclass(frozen=True)
class Course:
    """The folder in which a class is graded; everything lies in its subfolder ``grading``."""

    root: Path

    @property
    def grading(self) -> Path:
        """The folder of everything that grading makes."""
        return self.root.absolute() / "grading"

    @property
    def database(self) -> str:
        """The gradebook's address."""
        return f"sqlite:///{self.grading / 'gradebook.db'}"

    def report(self, assignment: str, student: str) -> Path:
        """Return the path of a student's report."""
        return self.grading / "reports" / assignment / f"{student}.json"

    def shown(self, assignment: Assignment, student: str) -> Path:
        """Return the path of the notebook that formgrader shows."""
        return self.grading / "autograded" / student / assignment.folder / f"{assignment.name}.ipynb"


def configure(config: Config, course: Course) -> Config:
    """Put nbgrader's settings for a course into ``config`` and return it."""
    config.CourseDirectory.course_id = "mlcomp"
    config.CourseDirectory.root = str(course.root.absolute())
    config.CourseDirectory.source_directory = str(source_root())
    config.CourseDirectory.release_directory = str(course.grading / "release")
    config.CourseDirectory.submitted_directory = str(course.grading / "submitted")
    config.CourseDirectory.autograded_directory = str(course.grading / "autograded")
    config.CourseDirectory.feedback_directory = str(course.grading / "feedback")
    config.CourseDirectory.db_url = course.database
    config.Autograde.autograde_preprocessors = AUTOGRADE_STEPS
    return config


@contextmanager
def _opened(course: Course) -> Iterator[Gradebook]:
    """Open the gradebook.

    Raises:
        ValueError: it is damaged, or cannot be used.
    """
    file = course.grading / "gradebook.db"
    try:
        with Gradebook(course.database, "mlcomp") as gradebook:
            yield gradebook
    except SQLAlchemyError as error:
        raise ValueError(
            f"{file} cannot be used ({str(error).splitlines()[0]}). Put a backup in its place, or move it away: "
            "`mlcomp-grade class` enters all reports again, but what was graded by hand is in this file alone"
        ) from error


def register(course: Course, assignment: Assignment) -> None:
    """Enter the assignment's questions into the gradebook, unless it holds just these."""
    course.grading.mkdir(parents=True, exist_ok=True)
    if not _is_registered(course, assignment):
        _convert(GenerateAssignment, course, assignment.folder, ".")


def _is_registered(course: Course, assignment: Assignment) -> bool:
    wanted = {
        name: None if mark.get("solution") else source(cell)
        for name, cell in assignment.by_id.items()
        if (mark := marks(cell)).get("grade") or mark.get("solution") or mark.get("locked")
    }
    with _opened(course) as gradebook:
        try:
            book = gradebook.find_notebook(assignment.name, assignment.folder)
        except MissingEntry:
            return False
        held = {c.name: None if wanted.get(c.name, "") is None else c.source for c in book.source_cells}
        points = {cell.name: cell.max_score for cell in book.grade_cells}
    return held == wanted and points == {question.id: question.points for question in assignment.questions}


def entered(course: Course, assignment: Assignment) -> dict[str, dict[str, float | None]]:
    """Return student → question → points of the checks (None: graded by hand), as the gradebook holds them."""
    with _opened(course) as gradebook:
        return {
            handed_in.student.id: {
                grade.name: grade.auto_score for book in handed_in.notebooks for grade in book.grades
            }
            for handed_in in gradebook.assignment_submissions(assignment.folder)
        }


def is_entered(
    course: Course,
    assignment: Assignment,
    student: str,
    report: Report,
    there: dict[str, dict[str, float | None]],
) -> bool:
    """Whether the gradebook holds this report: its points, which are in ``there``, and the notebook to look at."""
    try:
        book = json.loads(course.shown(assignment, student).read_text(encoding="utf-8"))
        shown = book["metadata"]["mlcomp"]["report"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    held = there.get(student, {})
    same = all(held.get(result.id) == result.points for result in report.results if not result.manual)
    return same and shown == _fingerprint(report) and held.keys() == {result.id for result in report.results}


def _fingerprint(report: Report) -> str:
    """Return a hash of a report and of how its notebook is made from it."""
    return hashlib.sha256(f"2 {report.to_json()}".encode()).hexdigest()


def record(
    course: Course, assignment: Assignment, student: str, submission: Path, report: Report, limits: Limits
) -> None:
    """Enter a report into the gradebook. Doing it again changes nothing; points given by hand stay."""
    folder = course.grading / "submitted" / student / assignment.folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    book = clean_copy(submission, assignment, limits)
    book.metadata["mlcomp"] = {"report": _fingerprint(report)}
    nbformat.write(book, folder / f"{assignment.name}.ipynb")
    # A file may carry any time, also one that no calendar holds.
    handed_in = datetime.fromtimestamp(min(max(submission.lstat().st_mtime, 0), 2**32), UTC)
    (folder / "timestamp.txt").write_text(handed_in.strftime("%Y-%m-%d %H:%M:%S UTC"), encoding="utf-8")
    _convert(Autograde, course, assignment.folder, student)


# nbgrader's pages take MathJax from this address and from no other; its configuration is read with eval. They hold
# no other script: should a text of a student's ever come through as a tag, the browser neither runs nor loads it.
_MATHJAX = "https://cdnjs.cloudflare.com/ajax/libs/mathjax/"
_POLICY = (
    f"default-src 'none'; script-src {_MATHJAX} 'unsafe-eval'; style-src 'unsafe-inline'; font-src {_MATHJAX}; "
    "img-src data:; base-uri 'none'; form-action 'none'"
)


def feedback(course: Course, folder: str) -> Path:
    """Write nbgrader's feedback pages of an assignment, with comments given by hand; return their folder.

    Raises:
        RuntimeError: some pages could not be written; all others are there.
    """
    with _opened(course) as gradebook:
        students = sorted(handed_in.student.id for handed_in in gradebook.assignment_submissions(folder))
    failed = []
    for student in students:
        try:
            for book in (course.grading / "autograded" / student / folder).glob("*.ipynb"):
                if "mlcomp" not in json.loads(book.read_text(encoding="utf-8"))["metadata"]:
                    raise ValueError("its notebook is of an older version: run `mlcomp-grade class` again")
            _convert(GenerateFeedback, course, folder, student)
            for page in (course.grading / "feedback" / student / folder).glob("*.html"):
                page.write_text(with_policy(page.read_text(encoding="utf-8")), encoding="utf-8")
        except Exception as error:  # one student's; the others get their pages
            failed.append(f"  {student}: {error}")
    if failed:
        raise RuntimeError("no feedback page for\n" + "\n".join(failed))
    return course.grading / "feedback"


def with_policy(page: str) -> str:
    """Return one of nbgrader's feedback pages with a content-security policy before anything that a student wrote."""
    return page.replace("<head>", f'<head>\n<meta http-equiv="Content-Security-Policy" content="{_POLICY}"/>', 1)


def grades_csv(course: Course, folder: str) -> str:
    """Return a table of all students: total, each question, and whether something waits for a person.

    A text that a spreadsheet would take for a formula has a ' in front.
    """
    if not (course.grading / "gradebook.db").exists():
        raise ValueError(f"there is no gradebook in {course.grading}: run `mlcomp-grade class` first")
    out = io.StringIO()
    with _opened(course) as gradebook:
        names = [cell.name for book in gradebook.find_assignment(folder).notebooks for cell in book.grade_cells]
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["student", "score", "max_score", "late_seconds", "needs_manual_grade", *names])
        for handed_in in sorted(gradebook.assignment_submissions(folder), key=lambda s: s.student.id):
            grades = {grade.name: grade for book in handed_in.notebooks for grade in book.grades}
            student = no_formula(handed_in.student.id)
            facts = [student, handed_in.score, handed_in.max_score, handed_in.total_seconds_late]
            writer.writerow([*facts, handed_in.needs_manual_grade, *(grades[name].score for name in names)])
    return out.getvalue()


class GradeOutside(NbGraderPreprocessor):
    """Fills a clean copy with the outcomes and outputs of its report."""

    def preprocess(self, nb: NotebookNode, resources: dict[str, Any]) -> tuple[NotebookNode, dict[str, Any]]:
        """Return the notebook with the outputs from which nbgrader's SaveAutoGrades reads the points."""
        names = resources["nbgrader"]
        course = Course(Path(CourseDirectory(config=self.config).root))
        path = course.report(names["assignment"], names["student"])
        if not path.exists():
            raise FileNotFoundError(f"{names['student']} is not graded yet: run `mlcomp-grade class` first")
        report = Report.from_json(path.read_text(encoding="utf-8"))
        results = {result.id: result for result in report.results}
        outputs = iter(report.outputs)
        for cell in nb.cells:
            mark = cell.metadata.get("nbgrader", {})
            result = results.get(mark.get("grade_id")) if mark.get("grade") else None
            if cell.cell_type == "code" and result is not None:
                cell.outputs = _outcome(result.points, result.maximum, result.message)
            elif cell.cell_type == "code" and not is_left_out(cell):
                cell.outputs = _printed(next(outputs, None))
        return nb, resources


def _outcome(points: int | None, maximum: int, message: str) -> list[NotebookNode]:
    """Return what a graded cell shows: nothing while it waits for a person."""
    if points is None:
        return []
    if points == maximum:
        return [nbformat.v4.new_output("stream", name="stdout", text=f"Passed: {points} of {maximum} points.\n")]
    return [nbformat.v4.new_output("error", ename="AssertionError", evalue=message, traceback=[message])]


def _printed(output: Any) -> list[NotebookNode]:
    outputs = []
    if output is not None and output.printed:
        outputs.append(nbformat.v4.new_output("stream", name="stdout", text=output.printed))
    if output is not None and output.error:
        outputs.append(nbformat.v4.new_output("error", ename="Error", evalue=output.error, traceback=[output.error]))
    return outputs


def _convert(converter: type, course: Course, folder: str, student: str) -> None:
    config = configure(Config(), course)
    config.CourseDirectory.assignment_id = folder
    config.CourseDirectory.student_id = student
    app = converter(coursedir=CourseDirectory(config=config), config=config)
    app.log.setLevel(logging.CRITICAL)
    app.force = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nbgrader's own, about its database layer
        app.start()
