"""What a test started is seen, an orphan too, and nobody else's process is."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.exercises.descent import adopting, descendants

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def orphan():
    """A function that starts a process whose parent ends at once, and returns its id."""
    started = []

    def start(name="sleep 60"):
        done = subprocess.run(
            ["sh", "-c", f"{name} >/dev/null 2>&1 & echo $!"], capture_output=True, text=True, check=True
        )
        started.append(int(done.stdout))
        return started[-1]

    yield start
    for pid in started:
        os.kill(pid, signal.SIGKILL)


def test_an_orphan_is_seen_where_it_is_adopted_and_is_foreign_where_it_is_not(orphan):
    foreign = orphan()
    with adopting():
        ours = orphan()
        # In another session, as the grader's processes are.
        far = orphan("setsid sleep 60")
        assert {ours, far} <= descendants() and foreign not in descendants()
    late = orphan()
    assert late not in descendants()


def test_grandchildren_are_seen_and_what_ended_is_not():
    code = "import subprocess; print(subprocess.Popen(['sleep', '60']).pid, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        below = int(child.stdout.readline())
        assert {child.pid, below} <= descendants()
        assert below in descendants(child.pid) and child.pid not in descendants(child.pid)
        os.kill(below, signal.SIGKILL)  # a zombie now: its parent does not wait for it
        for _ in range(200):
            if below not in descendants():
                break
            time.sleep(0.05)
        assert below not in descendants() and child.pid in descendants()
        child.communicate(b"\n")
    assert child.pid not in descendants()
