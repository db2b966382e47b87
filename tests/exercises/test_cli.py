"""The command, as its three kinds of users run it."""

import copy
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlcomp.grading import assignment as assignments
from mlcomp.grading import cli, generate, sandbox
from mlcomp.grading import grade as grade_module

ROOT = Path(__file__).parents[2]


def grade(*args, cwd, **kwargs):
    command = [sys.executable, "-m", "mlcomp.grading", *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, **kwargs)


def write(book, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(book))
    return path


def answer(book, grade_id, text):
    book = copy.deepcopy(book)
    next(c for c in book["cells"] if c["metadata"].get("nbgrader", {}).get("grade_id") == grade_id)["source"] = text
    return book


# --- the self-learner ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_own_work_in_any_folder(reference, tmp_path):
    book = answer(reference, "obq-answer", "def obq_row(weight, hessian, levels):\n    return weight\n")
    path = write(book, tmp_path / "Copy of optimal (1).ipynb")
    before, stamp = path.read_bytes(), path.stat().st_mtime_ns
    done = grade(path.name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "18 of 22" in done.stdout and "some values are not levels" in done.stdout and "read again" in done.stdout
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (before, stamp)
    page = (tmp_path / "Copy of optimal (1)_feedback.html").read_text()
    assert "some values are not levels" in page and "18 of 22" in page
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "Copy of optimal (1).ipynb",
        "Copy of optimal (1)_feedback.html",
    ]


@pytest.mark.slow
def test_the_feedback_page_escapes_what_the_student_wrote(empty, tmp_path):
    script = "<script>alert(1)</script>"
    book = answer(empty, "obd-saliency-answer", f"print('{script}')\nraise ValueError('{script}')")
    done = grade(write(book, tmp_path / "mine.ipynb"), "--feedback", "page.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "<script" not in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("text", ["", "garbage", "[]", '{"cells": 3}', '{"cells": [1]}', '{"cells": []}'])
def test_a_file_that_is_no_assignment_is_a_clear_error(text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.ipynb").write_text(text)
    assert cli.main(["x.ipynb"]) == 1
    message = capsys.readouterr().err
    assert "not a notebook" in message or "belongs to no assignment" in message
    assert cli.main(["absent.ipynb"]) == 1


def test_a_grader_that_does_not_start_is_no_grade(empty, tmp_path, capsys, monkeypatch):
    path = write(empty, tmp_path / "mine.ipynb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(grade_module, "worker_command", lambda: [sys.executable, "-c", "import nothing_by_this_name"])
    assert cli.main([str(path)]) == 1
    assert "does not start, so nothing was graded" in capsys.readouterr().err
    assert not list(tmp_path.glob("*feedback*"))


def test_without_nbgrader_the_class_is_a_clear_error(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "nbgrader" else object())
    assert cli.main(["class", str(tmp_path)]) == 1
    assert 'nbgrader, which is not installed (in a clone: pip install -e ".[grading]"' in capsys.readouterr().err


def test_the_package_does_not_import_the_grader():
    code = "import mlcomp, sys; assert not {'mlcomp.grading', 'nbgrader', 'IPython'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- students' notebooks --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_exercises_are_what_the_solutions_give(tmp_path):
    assert generate.out_of_date(ROOT / "solutions", ROOT / "exercises") == []
    shutil.copytree(ROOT / "exercises", tmp_path / "exercises")
    (released,) = (tmp_path / "exercises" / "lecture2").glob("*.ipynb")
    good = released.read_bytes()
    released.write_bytes(good + b" ")
    (tmp_path / "exercises" / "lecture2" / "stray.ipynb").write_text("{}")
    stray = released.with_name("stray.ipynb")
    assert generate.out_of_date(ROOT / "solutions", tmp_path / "exercises") == sorted([released, stray])
    assert sorted(generate.generate(ROOT / "solutions", tmp_path / "exercises")) == sorted([released, stray])
    assert released.read_bytes() == good and not stray.exists()


def test_links_of_a_students_notebook_lead_to_the_repository_or_nowhere_at_all(empty, tmp_path):
    text = json.dumps(empty)
    assert "../../lectures" not in text
    page = "2_optimal_brain_compression/02_obd_and_obs"
    if "git+https://" not in text:  # no address is set
        assert text.count("(in the book: <code>2_optimal_brain_compression/") == 8  # one in each question's hints
    source = {"source": [f'<a href="../../lectures/{page}.html">OBS</a>\n'], "metadata": {}}
    config = tmp_path / "_config.yml"
    for url, expected in {
        "": f"OBS (in the book: <code>{page}</code>)\n",
        "https://github.com/a/b": f'<a href="https://github.com/a/b/blob/main/lectures/{page}.ipynb">OBS</a>\n',
    }.items():
        config.write_text(f'repository:\n  url: "{url}"\n  branch: main\n')
        made = generate._finished(json.dumps({"cells": [source]}), generate._notebook_link(config))
        assert json.loads(made)["cells"][0]["source"] == [expected]


def test_a_students_notebook_holds_no_answers(empty, reference):
    text = json.dumps(empty)
    assert "HIDDEN" not in text and "BEGIN SOLUTION" not in text and "inverse -= " not in text
    assert text.count("raise NotImplementedError") >= 7
    assert all(not cell.get("outputs") for cell in empty["cells"])
    imports = {
        line.split()[1].split(".")[0]
        for c in empty["cells"]
        if c["cell_type"] == "code"
        for line in "".join(c["source"]).splitlines()
        if line.startswith(("import ", "from "))
    }
    with_jupyter = {"packaging", "matplotlib_inline"}  # for the set-up cell
    assert imports <= {"mlcomp", "numpy", "torch", "matplotlib", *with_jupyter} | set(sys.stdlib_module_names)
    assert len(empty["cells"]) == len(reference["cells"])


# --- the teacher ----------------------------------------------------------------------------------------------------


def table(course):
    done = grade("csv", "lecture2", cwd=course)
    assert done.returncode == 0, done.stderr
    return {row["student"]: row for row in csv.DictReader(done.stdout.splitlines())}


@pytest.mark.slow
@pytest.mark.sandbox
def test_a_class_from_submissions_to_feedback(reference, empty, tmp_path):
    handed_in = tmp_path / "downloads"
    write(reference, handed_in / "ada.ipynb")
    write(answer(empty, "derivation", "By symmetry."), handed_in / "bob" / "Copy of x.ipynb")
    write(empty, handed_in / "eve.ipynb")
    (handed_in / "garbage.ipynb").write_text("not a notebook")
    started = subprocess.Popen(
        [sys.executable, "-m", "mlcomp.grading", "class", "downloads"],
        cwd=tmp_path,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    reports = tmp_path / "grading" / "reports" / "lecture2"
    for _ in range(1200):  # until the first report, then the teacher's machine dies
        if started.poll() is not None or list(reports.glob("*.json")):
            break
        time.sleep(0.05)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    first = {path: path.stat().st_mtime_ns for path in reports.glob("*.json")}
    assert first
    done = grade("class", "downloads", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{len(first)} graded before" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in first} == first  # what was done was not done again
    rows = table(tmp_path)
    assert {s: float(r["score"]) for s, r in rows.items()} == {"ada": 22, "bob": 0, "eve": 0, "garbage": 0}
    assert {s: r["needs_manual_grade"] for s, r in rows.items()} == {
        "ada": "True",
        "bob": "True",
        "eve": "False",
        "garbage": "False",
    }

    from nbgrader.api import Gradebook

    from mlcomp.grading.gradebook import Course

    with Gradebook(Course(tmp_path).database, "mlcomp") as gradebook:  # what formgrader does
        by_hand = gradebook.find_grade("derivation", "optimal_brain_compression", "lecture2", "ada")
        by_hand.manual_score, by_hand.needs_manual_grade = 3, False
        gradebook.db.commit()
    done = grade("class", "downloads", "--regrade", "--student", "ada", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert float(table(tmp_path)["ada"]["score"]) == 25
    # A corrected file is graded, the others are not graded again.
    stamps = {path: path.stat().st_mtime_ns for path in reports.glob("*.json") if path.stem != "eve"}
    write(
        answer(empty, "obd-saliency-answer", "def obd_saliency(w, h):\n    return 0.5 * h.diagonal() * w**2\n"),
        handed_in / "eve.ipynb",
    )
    assert grade("class", "downloads", cwd=tmp_path).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert float(table(tmp_path)["eve"]["score"]) == 2
    done = grade("feedback", "lecture2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "grading" / "feedback" / "eve" / "lecture2" / "optimal_brain_compression.html").read_text()
    assert "Passed: 2 of 2 points" in page and "not answered yet" in page


def test_others_work_is_not_run_without_a_sandbox(empty, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sandbox, "why_not", lambda: "the sandbox (bubblewrap) exists on Linux only")
    write(empty, tmp_path / "in" / "ada.ipynb")
    assert cli.main(["class", "in"]) == 1
    assert "--unsandboxed" in capsys.readouterr().err
    assert not (tmp_path / "grading").exists()


def test_a_notebook_of_another_assignment_does_not_decide_for_the_class(empty, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "mlcomp.grading.classroom.grade_class", lambda course, found, *_, **__: graded.append(found) or {}
    )
    graded = []
    other = ROOT / "exercises" / "lecture1_pruning" / "pruning.ipynb"
    write(json.loads(other.read_text()), tmp_path / "in" / "aaa.ipynb")
    for name in ("bob", "eve"):
        write(empty, tmp_path / "in" / f"{name}.ipynb")
    assert cli.main(["class", "in", "--unsandboxed"]) == 0
    assert [found.folder for found in graded] == ["lecture2"]


@pytest.mark.slow
def test_the_page_goes_into_a_folder_that_is_not_there_yet(empty, tmp_path):
    done = grade(write(empty, tmp_path / "mine.ipynb"), "--feedback", "not/yet/page.html", cwd=tmp_path)
    assert done.returncode == 0 and "Question" in done.stdout, done.stderr
    assert (tmp_path / "not" / "yet" / "page.html").exists()


def test_matching_by_cells_not_by_name(assignment, empty):
    assert assignments.match(empty["cells"], [assignment]) is assignment
    with pytest.raises(assignments.AssignmentError, match="belongs to no assignment"):
        assignments.match([{"cell_type": "code", "metadata": {}}], [assignment])
