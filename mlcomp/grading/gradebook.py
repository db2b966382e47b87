"""The reports of a class in nbgrader: its gradebook, its formgrader for written answers, its feedback.

nbgrader never sees a file that a student made. It gets a clean copy (the source's structure with the student's
answers), and instead of executing it, it takes outcomes and outputs from the report.
"""

import csv
import hashlib
import io
import logging
import shutil
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlcomp.grading.assignment import Assignment, AssignmentError, Cell, aligned, parse, source_root
from mlcomp.grading.extra import require_nbgrader
from mlcomp.grading.report import Report

require_nbgrader()

import nbformat  # noqa: E402  (only after the clear error above)
from nbformat.notebooknode import NotebookNode  # noqa: E402
from nbgrader.api import Gradebook  # noqa: E402
from nbgrader.converters import Autograde, GenerateAssignment, GenerateFeedback  # noqa: E402
from nbgrader.coursedir import CourseDirectory  # noqa: E402
from nbgrader.preprocessors import NbGraderPreprocessor  # noqa: E402
from traitlets.config import Config  # noqa: E402

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

    def recorded(self, assignment: str, student: str) -> Path:
        """Return the path of the note that says which report the gradebook holds."""
        return self.grading / "reports" / assignment / f"{student}.recorded"


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
    # What a student wrote is text in formgrader and in the feedback, never a script.
    config.HTMLExporter.sanitize_html = True
    return config


def register(course: Course, assignment: Assignment) -> None:
    """Enter the assignment's questions into the gradebook, unless this version of it is there."""
    note = course.grading / "release" / f"{assignment.folder}.sha256"
    if note.exists() and note.read_text() == assignment.sha256:
        return
    course.grading.mkdir(parents=True, exist_ok=True)
    _convert(GenerateAssignment, course, assignment.folder, ".")
    note.write_text(assignment.sha256)


def record(course: Course, assignment: Assignment, student: str, submission: Path, report: Report) -> None:
    """Enter a report into the gradebook. Doing it again changes nothing; points given by hand stay."""
    text = report.to_json()
    note = course.recorded(assignment.folder, student)
    digest = hashlib.sha256(text.encode()).hexdigest()
    if note.exists() and note.read_text() == digest:
        return
    folder = course.grading / "submitted" / student / assignment.folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    nbformat.write(_clean(submission, assignment), folder / f"{assignment.name}.ipynb")
    handed_in = datetime.fromtimestamp(submission.stat().st_mtime, UTC)
    (folder / "timestamp.txt").write_text(handed_in.strftime("%Y-%m-%d %H:%M:%S UTC"))
    _convert(Autograde, course, assignment.folder, student)
    note.write_text(digest)


def feedback(course: Course, folder: str) -> Path:
    """Write nbgrader's feedback pages of an assignment, with comments given by hand; return their folder."""
    _convert(GenerateFeedback, course, folder, "*")
    return course.grading / "feedback"


def grades_csv(course: Course, folder: str) -> str:
    """Return a table of all students: total, each question, and whether something waits for a person."""
    out = io.StringIO()
    with Gradebook(course.database, "mlcomp") as gradebook:
        names = [cell.name for book in gradebook.find_assignment(folder).notebooks for cell in book.grade_cells]
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["student", "score", "max_score", "late_seconds", "needs_manual_grade", *names])
        for handed_in in sorted(gradebook.assignment_submissions(folder), key=lambda s: s.student.id):
            grades = {grade.name: grade for book in handed_in.notebooks for grade in book.grades}
            facts = [handed_in.student.id, handed_in.score, handed_in.max_score, handed_in.total_seconds_late]
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
        report = Report.from_json(path.read_text())
        results = {result.id: result for result in report.results}
        outputs = iter(report.outputs)
        for cell in nb.cells:
            mark = cell.metadata.get("nbgrader", {})
            result = results.get(mark.get("grade_id")) if mark.get("grade") else None
            if cell.cell_type == "code" and result is not None:
                cell.outputs = _outcome(result.points, result.maximum, result.message)
            elif cell.cell_type == "code" and "not-graded" not in cell.metadata.get("tags", []):
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


def _clean(submission: Path, assignment: Assignment) -> NotebookNode:
    """Return the submission in the source's structure; one that cannot be read has no answers."""
    try:
        cells: list[Cell] = aligned(parse(submission.read_bytes()), assignment)
    except AssignmentError:
        cells = aligned([], assignment)
    book = nbformat.v4.new_notebook()
    book.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    make = {"code": nbformat.v4.new_code_cell, "markdown": nbformat.v4.new_markdown_cell}
    for number, cell in enumerate(cells):
        new = make.get(cell["cell_type"], nbformat.v4.new_raw_cell)(cell["source"])
        new["id"], new["metadata"] = f"cell-{number}", nbformat.from_dict(cell["metadata"])
        book.cells.append(new)
    return book


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
