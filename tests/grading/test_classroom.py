"""A folder of submissions as classes hand them in: names, leftovers, and files that want to stop the others."""

import copy
import csv
import json
import os
import subprocess
import sys
import unicodedata

import pytest

from mlcomp.grading import classroom
from mlcomp.grading.classroom import grade_class, name_of, student_id, submissions
from mlcomp.grading.grade import GraderBroken, nothing_graded
from mlcomp.grading.gradebook import Course, entered, feedback, grades_csv, register
from mlcomp.grading.limits import Limits
from mlcomp.grading.report import no_formula


def write(path, text="{}"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["ada", "müller", "王小明", "Ольга_2", "s123@example.org", "jean-luc", "x" * 60])
def test_a_plain_name_of_any_script_is_the_id(name):
    assert student_id(name) == name
    assert student_id(unicodedata.normalize("NFD", name)) == name  # as macOS writes it


@pytest.mark.parametrize(
    "name",
    [
        "Ada Lovelace",
        "a<b>",
        "=1+1",
        "@SUM",
        "-x",
        ".x",
        "a/b",
        "a\x1b[2J",
        "ada\u200b",
        "\udc80",
        "*",
        "x" * 61,
        "..",
        "ａ＝",
    ],
)
def test_another_name_is_mapped_to_an_id_of_its_own(name):
    made = student_id(name)
    assert made != name and len(made) <= 60 and student_id(name + "x") != made
    assert all(unicodedata.category(c)[0] in "LMN" or c in "_.@-" for c in made) and made[0] not in ".@-"
    assert made.isprintable() and student_id(made) == made


def test_leftovers_and_hidden_files_are_no_students(tmp_path):
    for name in (
        "ada.ipynb",
        "Bo Li/Copy of work (1).ipynb",
        ".ipynb_checkpoints/ada-checkpoint.ipynb",
        "Bo Li/.ipynb_checkpoints/x-checkpoint.ipynb",
        "__MACOSX/ada.ipynb",
        "__MACOSX/Bo Li/._x.ipynb",
        "._ada.ipynb",
        "Bo Li/._Copy of work (1).ipynb",
        ".DS_Store",
        "notes.txt",
        "empty/readme.md",
    ):
        write(tmp_path / name)
    found = submissions(tmp_path)
    assert {name_of(path, tmp_path): student for student, path in found.items()} == {
        "ada": "ada",
        "Bo Li": student_id("Bo Li"),
    }
    assert found["ada"] == tmp_path / "ada.ipynb"


def test_the_newest_of_several_counts_and_odd_entries_do_not_stop_it(tmp_path):
    for stamp, name in enumerate(["ada/new.ipynb", "ada/old.ipynb", "ada.ipynb"]):
        os.utime(write(tmp_path / name), (9000 - stamp, 9000 - stamp))
    (tmp_path / "bob.ipynb").symlink_to("absent")
    (tmp_path / "eve").symlink_to("ada")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "zoe").mkdir()
    (tmp_path / "zoe" / "x.ipynb").mkdir()
    found = submissions(tmp_path)
    assert found == {"ada": tmp_path / "ada" / "new.ipynb", "bob": tmp_path / "bob.ipynb", "eve": tmp_path / "eve"}


def test_a_folder_without_notebooks_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no STUDENT"):
        submissions(tmp_path)
    with pytest.raises(FileNotFoundError, match="absent"):
        submissions(tmp_path / "absent")


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "＝1", " =1", "\t=1"])
def test_a_formula_is_none_in_a_table(text):
    assert no_formula(text).startswith(("'", "\\t"))


def test_a_name_is_written_as_it_is_in_a_table():
    assert no_formula("王-1") == "王-1"


# --- the class and the gradebook ------------------------------------------------------------------------------------


@pytest.fixture
def course(tmp_path, assignment, monkeypatch):
    """A course whose submissions are not run: each gets the report that nothing could be graded."""

    def graded(assignment, todo, *_):
        for student, path in todo.items():
            yield student, nothing_graded(path, assignment, False, Limits(), "a test")

    monkeypatch.setattr(classroom, "_graded", graded)
    return Course(tmp_path / "course")


def quiet(_line):
    pass


@pytest.mark.slow
def test_the_gradebook_is_asked_what_it_holds(course, assignment, empty, tmp_path):
    database = course.grading / "gradebook.db"
    for name in ("ada", "zoe"):
        write(tmp_path / "in" / f"{name}.ipynb", json.dumps(empty))
    handed_in = submissions(tmp_path / "in")

    def again():
        lines = []
        grade_class(course, assignment, handed_in, say=lines.append)
        rows = csv.DictReader(grades_csv(course, assignment.folder).splitlines())
        return [row["student"] for row in rows], "2 graded before, 0 to do" in lines

    grade_class(course, assignment, {"ada": handed_in["ada"]}, say=quiet)
    older = database.read_bytes()
    grade_class(course, assignment, handed_in, say=quiet)
    stamp = database.stat().st_mtime_ns
    assert again() == (["ada", "zoe"], True)
    assert database.stat().st_mtime_ns == stamp  # nothing to enter
    database.write_bytes(older)
    assert again() == (["ada", "zoe"], True)
    database.unlink()
    with pytest.raises(ValueError, match="there is no gradebook"):
        grades_csv(course, assignment.folder)
    assert again() == (["ada", "zoe"], True)
    course.shown(assignment, "zoe").unlink()
    assert again() == (["ada", "zoe"], True) and course.shown(assignment, "zoe").exists()
    from nbgrader.api import Gradebook

    with Gradebook(course.database, "mlcomp") as gradebook:
        gradebook.remove_submission(assignment.folder, "ada")
        gradebook.find_grade("obq", assignment.name, assignment.folder, "zoe").auto_score = 3
        gradebook.db.commit()
    assert again() == (["ada", "zoe"], True)
    assert entered(course, assignment)["zoe"]["obq"] == 0
    database.write_bytes(b"no database" * 100)
    with pytest.raises(ValueError, match=r"gradebook\.db cannot be used"):
        grades_csv(course, assignment.folder)


@pytest.mark.slow
def test_one_that_cannot_be_entered_leaves_the_others_in(course, assignment, empty, tmp_path, monkeypatch):
    for name in ("ada", "bob", "zoe"):
        path = write(tmp_path / "in" / f"{name}.ipynb", json.dumps(empty))
    os.utime(path, (2**55, 2**55))  # no calendar has this day
    real, handed_in = classroom.record, submissions(tmp_path / "in")

    def record(course, assignment, student, *rest):
        if student == "bob":
            raise KeyError("\x1b[2J")
        real(course, assignment, student, *rest)

    monkeypatch.setattr(classroom, "record", record)
    with pytest.raises(RuntimeError, match="bob: KeyError"):
        grade_class(course, assignment, handed_in, say=quiet)
    assert sorted(entered(course, assignment)) == ["ada", "zoe"]
    monkeypatch.setattr(classroom, "record", real)
    grade_class(course, assignment, handed_in, say=quiet)
    assert sorted(entered(course, assignment)) == ["ada", "bob", "zoe"]
    course.shown(assignment, "bob").chmod(0o644)
    course.shown(assignment, "bob").write_text("no notebook")
    with pytest.raises(RuntimeError, match="bob"):
        feedback(course, assignment.folder)
    for name in ("ada", "zoe"):
        page = course.grading / "feedback" / name / assignment.folder / f"{assignment.name}.html"
        assert "Content-Security-Policy" in page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_machine_that_cannot_grade_gives_nobody_a_zero(course, assignment, empty, tmp_path, monkeypatch):
    def broken(*_):
        raise GraderBroken("does not start")
        yield

    monkeypatch.setattr(classroom, "_graded", broken)
    path = write(tmp_path / "in" / "ada.ipynb", json.dumps(empty))
    with pytest.raises(GraderBroken):
        grade_class(course, assignment, {"ada": path}, say=quiet)
    assert entered(course, assignment) == {}


@pytest.mark.slow
def test_the_assignment_is_entered_once_and_again_when_it_changed(course, assignment):
    register(course, assignment)
    database = course.grading / "gradebook.db"
    stamp = database.stat().st_mtime_ns
    register(course, assignment)
    assert database.stat().st_mtime_ns == stamp
    from nbgrader.api import Gradebook

    with Gradebook(course.database, "mlcomp") as gradebook:
        gradebook.find_source_cell("obq", assignment.name, assignment.folder).source = "pass"
        gradebook.db.commit()
    register(course, assignment)
    with Gradebook(course.database, "mlcomp") as gradebook:
        assert gradebook.find_source_cell("obq", assignment.name, assignment.folder).source != "pass"


@pytest.mark.slow
@pytest.mark.sandbox
def test_odd_submissions_cost_the_others_nothing(empty, reference, tmp_path):
    def answering(grade_id, text):
        book = copy.deepcopy(empty)
        next(c for c in book["cells"] if c["metadata"].get("nbgrader", {}).get("grade_id") == grade_id)["source"] = (
            text
        )
        return book

    kinds = copy.deepcopy(empty)
    kinds["cells"] += [{"cell_type": ["x"], "source": {"a": "\ud800"}, "metadata": []}]
    many = {"cells": empty["cells"] + [{"cell_type": "markdown", "source": "", "metadata": {}}] * 60_000}
    inside = tmp_path / "in"
    for name, book in {
        "a surrogate": answering("obd-saliency-answer", "print('\\ud83d \x1b[2J')\nraise KeyError('\\udc80')"),
        "b kinds": kinds,
        "c cells": many,
        "d picture": answering("derivation", "![](attachment:x.png) \\def\\x{\\x\\x}$\\x$ <b"),
        "e other": {"cells": [{"cell_type": "code", "source": "1"}]},
        "王小明": reference,
    }.items():
        write(inside / f"{name}.ipynb", json.dumps(book))
    write(inside / "f deep.ipynb", '{"cells": ' + "[" * 100_000)
    os.mkfifo(inside / "g pipe.ipynb")
    (inside / "h link.ipynb").symlink_to("王小明.ipynb")

    def command(*args):
        full = [sys.executable, "-m", "mlcomp.grading", *args]
        return subprocess.run(full, cwd=tmp_path, capture_output=True, text=True, timeout=300, errors="replace")

    done = command("class", "in")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout and "'h link' is h_link-" in done.stdout
    assert command("feedback", "lecture2").returncode == 0
    table = command("csv", "lecture2")
    scores = {row["student"]: float(row["score"]) for row in csv.DictReader(table.stdout.splitlines())}
    assert len(scores) == 9 and {s: p for s, p in scores.items() if p} == {"王小明": 22}
    assert "9 graded before, 0 to do" in command("class", "in").stdout
