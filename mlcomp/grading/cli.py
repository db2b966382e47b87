"""The command ``mlcomp-grade``: your own notebook, a class, and the students' notebooks."""

import argparse
import importlib.util
import io
import sys
from collections import Counter
from pathlib import Path

from mlcomp.extras import how_to_get

_USAGE = """usage: mlcomp-grade NOTEBOOK.ipynb            grade your own work: a table, and a feedback page
       mlcomp-grade class FOLDER             grade a class: FOLDER/STUDENT.ipynb or FOLDER/STUDENT/….ipynb
       mlcomp-grade csv ASSIGNMENT           the gradebook as a table
       mlcomp-grade feedback ASSIGNMENT      feedback pages with the comments given by hand
       mlcomp-grade generate [--check]       make exercises/ from solutions/ (in a clone)

Each has --help. The page "Teaching with this book" goes through it from release to feedback.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit status: 0 done, 1 something is wrong with a file or a setting, 2 usage."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE, end="")
        return 0 if argv else 2
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a student's name that the terminal cannot show
    commands = {"class": _class, "csv": _csv, "feedback": _feedback, "generate": _generate}
    command = commands.get(argv[0])
    try:
        if sys.platform == "win32":
            raise RuntimeError("grading needs Linux or macOS; on Windows, use WSL")
        if importlib.util.find_spec("IPython") is None:
            raise ImportError(f"grading needs IPython, which is not installed ({how_to_get('grading')})")
        return command(argv[1:]) if command else _own(argv)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        from mlcomp.grading.report import printable

        print(printable(f"mlcomp-grade: {error}"), file=sys.stderr)
        return 1


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"mlcomp-grade {name}".strip(), description=description)


def _own(argv: list[str]) -> int:
    from mlcomp.grading.grade import grade_file
    from mlcomp.grading.report import page, printable, table

    parser = _parser("", "Run the visible and hidden checks on your own notebook. The notebook is only read.")
    parser.add_argument("notebook", type=Path)
    parser.add_argument(
        "--feedback", type=Path, help="where to write the page (default: NOTEBOOK_feedback.html here)"
    )
    parser.add_argument("--sandbox", action="store_true", help="run the code in bubblewrap, as for a class (Linux)")
    parser.add_argument("--seed", type=int, help="repeat the checks of an earlier page")
    args = parser.parse_args(argv)
    report = grade_file(args.notebook, sandbox=args.sandbox, seed=args.seed)
    target = args.feedback or Path(f"{args.notebook.stem}_feedback.html")
    print(table(report))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page(report), encoding="utf-8")
    print(printable(f"Feedback: {target}"))
    return 0


def _class(argv: list[str]) -> int:
    from mlcomp.grading import sandbox
    from mlcomp.grading.assignment import AssignmentError, load_assignments, match
    from mlcomp.grading.extra import require_nbgrader

    parser = _parser("class", "Grade the submissions of a class and enter them into the gradebook of this folder.")
    parser.add_argument("folder", type=Path, help="holds STUDENT.ipynb or STUDENT/….ipynb; only read")
    parser.add_argument("--assignment", help="for instance lecture2 (default: found by the notebooks' cells)")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (default 2)")
    parser.add_argument("--student", action="append", help="only this one; may be given several times")
    parser.add_argument("--regrade", action="store_true", help="grade again what is graded; points by hand stay")
    parser.add_argument(
        "--unsandboxed",
        action="store_true",
        help="run the students' code with your own rights. Only for code you trust",
    )
    args = parser.parse_args(argv)
    require_nbgrader()
    reason = sandbox.why_not()
    if reason and not args.unsandboxed:
        raise sandbox.SandboxMissing(
            f"{reason}. Other people's code is not run without a sandbox; --unsandboxed runs it with all your rights"
        )
    from mlcomp.grading.classroom import grade_class, name_of, submissions
    from mlcomp.grading.gradebook import Course
    from mlcomp.grading.limits import Limits
    from mlcomp.grading.report import printable
    from mlcomp.grading.submission import cells_of, content

    handed_in = submissions(args.folder)
    unknown = set(args.student or ()) - set(handed_in)
    if unknown:
        raise ValueError(f"{args.folder} holds nothing of {', '.join(sorted(unknown))}")
    handed_in = {s: path for s, path in handed_in.items() if not args.student or s in args.student}
    found = [a for a in load_assignments() if args.assignment in (None, a.folder, f"{a.folder}/{a.name}")]
    votes = Counter(range(len(found)) if len(found) == 1 else ())
    for path in handed_in.values() if len(found) > 1 else ():
        try:
            votes[found.index(match(cells_of(content(path, Limits()), Limits()), found))] += 1
        except AssignmentError:
            continue
    if not votes:
        raise ValueError("the notebooks belong to no known assignment; name it with --assignment")
    assignment = found[votes.most_common(1)[0][0]]  # a notebook of another assignment is one student's mistake
    for student, path in handed_in.items():
        if name_of(path, args.folder) != student:
            print(printable(f"{name_of(path, args.folder)!r} is {student} in the gradebook"))
    reports = grade_class(
        *(Course(Path.cwd()), assignment, handed_in),
        **{"sandbox": not args.unsandboxed, "jobs": args.jobs, "regrade": args.regrade},
    )
    waiting = sum(any(r.points is None for r in report.results) for report in reports.values())
    print(
        f"{len(reports)} submissions of {assignment.folder} are in grading/gradebook.db, "
        f"{waiting} with answers to grade by hand"
    )
    print("Next: jupyter notebook, page /formgrader (by hand), mlcomp-grade csv, mlcomp-grade feedback")
    return 0


def _csv(argv: list[str]) -> int:
    parser = _parser("csv", "Print the gradebook of an assignment as comma-separated values.")
    parser.add_argument("assignment", help="for instance lecture2")
    args = parser.parse_args(argv)
    from mlcomp.grading.gradebook import Course, grades_csv

    print(grades_csv(Course(Path.cwd()), args.assignment), end="")
    return 0


def _feedback(argv: list[str]) -> int:
    parser = _parser("feedback", "Write a feedback page for each student of an assignment.")
    parser.add_argument("assignment", help="for instance lecture2")
    args = parser.parse_args(argv)
    from mlcomp.grading.gradebook import Course, feedback

    print(f"Feedback pages are in {feedback(Course(Path.cwd()), args.assignment)}")
    return 0


def _generate(argv: list[str]) -> int:
    from mlcomp.grading.generate import generate, out_of_date

    parser = _parser("generate", "Make the students' notebooks in exercises/ from solutions/.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a notebook is out of date")
    args = parser.parse_args(argv)
    solutions, exercises = Path("solutions"), Path("exercises")
    if not solutions.is_dir():
        raise ValueError("there is no solutions/ here: run this in the root of a clone")
    if args.check:
        stale = out_of_date(solutions, exercises)
        for path in stale:
            print(f"{path} differs from what its source gives: run `make exercises`", file=sys.stderr)
        return 1 if stale else 0
    for path in generate(solutions, exercises):
        print(f"wrote {path}" if path.exists() else f"removed {path}")
    return 0
