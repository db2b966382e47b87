"""Hostile submissions: contained by the sandbox, without points, and the next one is graded as if nothing was."""

import copy
import json
import socket
import sqlite3
import sys
import time
from pathlib import Path

import pytest

from mlcomp.grading.grade import grade_file
from tests.exercises.attacks import ATTACKS, FORGERIES
from tests.exercises.descent import adopting, descendants

pytestmark = [pytest.mark.sandbox, pytest.mark.slow]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """A secret, a gradebook and a listening port outside of the sandbox, all open to anyone who gets there."""
    tmp, course = tmp_path_factory.mktemp("outside"), tmp_path_factory.mktemp("course")
    (course / "grading").mkdir()
    (tmp / "secret").write_text("untouched")
    with sqlite3.connect(course / "grading" / "gradebook.db") as database:
        database.execute("create table grade (auto_score real)")
        database.execute("insert into grade values (1)")
    for path in (tmp, course, course / "grading", tmp / "secret", course / "grading" / "gradebook.db"):
        path.chmod(0o777)
    with socket.create_server(("127.0.0.1", 0)) as server:
        python = Path(sys.base_prefix)
        yield {
            "tmp": tmp,
            "course": course,
            "root": ROOT,
            "python": python,
            "host": "127.0.0.1",
            "port": server.getsockname()[1],
        }


def scores(outside):
    with sqlite3.connect(outside["course"] / "grading" / "gradebook.db") as database:
        return database.execute("select auto_score from grade").fetchall()


def submission(empty, cell, path):
    """Write an empty submission with ``cell`` in the place of the first answer."""
    book = copy.deepcopy(empty)
    answer = next(
        c for c in book["cells"] if c["metadata"].get("nbgrader", {}).get("grade_id") == "obd-saliency-answer"
    )
    answer["source"] = cell
    path.write_text(json.dumps(book))
    return path


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_contained(name, empty, outside, quick, tmp_path, note):
    cell = ATTACKS[name].format(**outside)
    path = submission(empty, cell, tmp_path / "attack.ipynb")
    with adopting():
        before, start = descendants(), time.monotonic()
        report = grade_file(path, sandbox=True, limits=quick)
        seconds = time.monotonic() - start
        for _ in range(40):  # the kernel takes a moment to end them
            if not (left := descendants() - before):
                break
            time.sleep(0.05)
    assert not left, "a process was left behind"
    printed = "".join(output.printed for output in report.outputs)
    errors = [output.error for output in report.outputs if output.error and "NotImplementedError" not in output.error]
    outcome = report.problem or (errors[0] if errors else "refused")
    note("Attacks in the sandbox", name, f"{report.points} points", f"{seconds:.0f} s", outcome[:80])
    assert "LEAKED" not in printed, printed
    assert "CONTAINED" in printed or report.problem or errors, "the attack left no trace: did it run?"
    assert report.points == 0
    if "forty" in name:  # no process takes too much; only the watch over all of them can end it
        assert "of memory" in report.problem
    assert seconds < 60
    assert not (outside["tmp"] / "written").exists() and not (outside["course"] / "written").exists()
    assert scores(outside) == [(1,)]


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_gets_no_points(name, empty, quick, tmp_path, note):
    path = submission(empty, FORGERIES[name], tmp_path / "forgery.ipynb")
    report = grade_file(path, sandbox=True, limits=quick)
    first = next(result for result in report.results if result.id == "obd-saliency")
    note("Forgeries", name, f"{report.points} points", (report.problem or first.message)[:100])
    assert report.points == 0


@pytest.mark.parametrize("cell", ["torch.equal = lambda *a: True", "import os\nos.fork()", "%matplotlib inline"])
def test_odd_cells_do_not_cost_points_for_right_values(cell, reference, quick, tmp_path):
    book = copy.deepcopy(reference)
    book["cells"].insert(3, {"cell_type": "code", "metadata": {}, "source": cell, "outputs": []})
    path = tmp_path / "odd.ipynb"
    path.write_text(json.dumps(book))
    assert grade_file(path, sandbox=True, limits=quick).points == 22


def test_deleted_and_edited_checks_do_not_matter(reference, empty, quick, tmp_path):
    def without_checks(book):
        book = copy.deepcopy(book)
        for cell in book["cells"]:
            mark = cell["metadata"].get("nbgrader", {})
            if mark.get("grade") and not mark.get("solution"):
                cell["source"] = "pass"
                mark["points"] = 1000
        return book

    honest, lazy = without_checks(reference), without_checks(empty)
    honest["cells"] = [c for c in honest["cells"] if c["metadata"].get("nbgrader", {}).get("grade_id") != "obq"]
    for book, points in ((honest, 22), (lazy, 0)):
        path = tmp_path / f"{points}.ipynb"
        path.write_text(json.dumps(book))
        report = grade_file(path, sandbox=True, limits=quick)
        assert (report.points, report.maximum) == (points, 22)


@pytest.mark.parametrize("name", ["reads solutions, gradebook, password hashes and a secret", "uses the network"])
def test_without_the_sandbox_the_same_attack_succeeds(name, empty, outside, quick, tmp_path):
    cell = ATTACKS[name].format(**outside)
    report = grade_file(submission(empty, cell, tmp_path / "attack.ipynb"), sandbox=False, limits=quick)
    assert any("LEAKED" in output.printed for output in report.outputs)


def test_without_the_sandbox_the_database_is_forged(empty, outside, quick, tmp_path):
    cell = ATTACKS["forges the database"].format(**outside)
    grade_file(submission(empty, cell, tmp_path / "attack.ipynb"), sandbox=False, limits=quick)
    assert scores(outside) == [(400,)]
