import json
import os
from pathlib import Path

import pytest

from mlcomp.grading import sandbox
from mlcomp.grading.assignment import load_assignments
from mlcomp.grading.limits import Limits

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def assignment():
    """The assignment with which the grader itself is tested; any would do."""
    (found,) = (a for a in load_assignments() if a.folder == "lecture2")
    return found


@pytest.fixture(scope="session")
def reference(assignment):
    """The cells of the source notebook, as a notebook that one may change and write."""
    return json.loads((ROOT / "solutions" / assignment.folder / f"{assignment.name}.ipynb").read_text())


@pytest.fixture(scope="session")
def empty(assignment):
    return json.loads((ROOT / "exercises" / assignment.folder / f"{assignment.name}.ipynb").read_text())


@pytest.fixture(scope="session")
def quick():
    """Limits that let an attack fail fast, with room for a busy machine."""
    return Limits(cell=4.0, call=4.0, grace=2.0, submission=60.0)


@pytest.fixture
def note(record_property):
    """Add a row to a table that is printed at the end of the run."""

    def add(table, *columns):
        record_property("table", json.dumps([table, *map(str, columns)]))

    return add


def pytest_runtest_setup(item):
    if "sandbox" not in item.keywords or sandbox.why_not() is None:
        return
    if os.environ.get("CI") == "true":  # there it is installed, so its absence is a mistake
        pytest.fail(f"no sandbox: {sandbox.why_not()}")
    pytest.skip(f"no sandbox here: {sandbox.why_not()}")
