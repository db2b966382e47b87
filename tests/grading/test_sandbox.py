"""What a process in the sandbox can see and do, without a grader around it."""

import os
import subprocess
import sys
import textwrap
import time

import pytest

from mlcomp.grading import sandbox, seccomp
from mlcomp.grading.kernel import KernelDied, resident
from mlcomp.grading.limits import Limits

pytestmark = pytest.mark.sandbox


def inside(code, **env):
    """Run Python code as a submission would run, started with ``env``; return what it printed."""
    with seccomp.filter_fd() as fd:
        command = sandbox.sandboxed(Limits(), slot=os.getpid(), filter_fd=fd)
        start = command[: -len(sandbox.worker_command())]
        done = subprocess.run(
            [*start, sys.executable, "-c", textwrap.dedent(code)],
            env={**os.environ, **env},
            cwd="/",
            capture_output=True,
            text=True,
            timeout=60,
            pass_fds=(fd,),
        )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_of_the_environment_is_seen():
    code = """
        import glob
        for path in glob.glob("/proc/[0-9]*/environ") + glob.glob("/proc/[0-9]*/cmdline"):
            try:
                print(open(path, "rb").read())
            except OSError:
                pass
        import os, socket
        print(os.environ, socket.gethostname())
    """
    printed = inside(code, COURSE_TOKEN="abc-12345", LANG="de_XX.UTF-8")
    assert "setenv" in printed, "the first process was not looked at"
    assert "12345" not in printed and "COURSE_TOKEN" not in printed and "de_XX" not in printed
    assert os.uname().nodename not in printed


def test_an_ordinary_user_hands_no_environment_on(monkeypatch):
    """Root's submissions are of another user, who cannot look into the first process; an ordinary user's are not."""
    as_user = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"] if os.geteuid() == 0 else []
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(sandbox, "_python_folders", lambda: [])  # this user may not be able to reach them
    command = [*as_user, *sandbox._bwrap(Limits()), "cat", "/proc/1/environ"]
    env = {"PATH": os.environ["PATH"], "COURSE_TOKEN": "abc-12345"}
    done = subprocess.run(command, env=env, cwd="/", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "12345" not in done.stdout


def test_only_the_three_streams_are_open():
    printed = inside("import os; print(sorted(map(int, os.listdir('/proc/self/fd'))))")
    assert printed.strip() in ("[0, 1, 2, 3]", "[0, 1, 2]")  # 3 is the listing's own


def test_no_call_makes_a_namespace_or_memory_that_no_process_holds():
    code = """
        import ctypes, errno, os, platform
        libc = ctypes.CDLL(None, use_errno=True)
        column = {"x86_64": 0, "aarch64": 1}[platform.machine()]
        def call(number, *args):
            result = libc.syscall(number[column], *args)
            return errno.errorcode.get(ctypes.get_errno()) if result == -1 else result
        user, signal = 0x10000000, 17
        print("unshare", call((272, 97), user), call((272, 97), 0x20000))
        child = call((56, 220), user | signal, 0, 0, 0, 0)
        if child == 0:
            os._exit(0)
        print("clone", child, "clone3", call((435, 435), 0, 0))
        print("mount", call((165, 40), b"none", b"/tmp", b"tmpfs", 0, b"size=8g"))
        print("memfd", call((319, 279), b"x", 0), "shmget", call((29, 194), 0, 1 << 30, 0o1600))
        print("x32", call((0x40000000 + 272,) * 2, user) if column == 0 else "ENOSYS")
        import threading, subprocess, multiprocessing
        thread = threading.Thread(target=print, args=("thread",))
        thread.start(); thread.join()
        print("process", subprocess.run(["true"]).returncode)
    """
    words = inside(code).split()
    answers = dict(zip(words[::2], words[1::2], strict=False))
    assert words[:3] == ["unshare", "EPERM", "EPERM"]
    assert words[3:7] == ["clone", "EPERM", "clone3", "ENOSYS"]
    assert words[7:15] == ["mount", "EPERM", "memfd", "EPERM", "shmget", "EPERM", "x32", "ENOSYS"]
    assert "thread" in words and words[-2:] == ["process", "0"], answers


def test_only_the_two_scratch_folders_can_be_written():
    code = """
        import os
        for folder, names, files in os.walk("/"):
            names[:] = [] if folder == "/proc" else [n for n in names if not os.path.islink(os.path.join(folder, n))]
            try:
                open(os.path.join(folder, "written-by-a-test"), "w").close()
                print(folder)
            except OSError:
                pass
    """
    assert {"/tmp"} <= set(inside(code).split()) <= {"/tmp", "/dev/shm"}  # the latter is root's if the grader is


def test_shared_memory_counts_after_its_pages_are_let_go():
    code = """
        import mmap, time
        block = mmap.mmap(-1, 200 * 2**20)
        for i in range(0, len(block), 4096):
            block[i] = 1
        block.madvise(mmap.MADV_DONTNEED)
        print("ready", flush=True)
        time.sleep(60)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        try:
            assert 200 * 2**20 < resident(process.pid) < 260 * 2**20
        finally:
            process.kill()


def test_a_process_that_hides_its_memory_is_an_end(monkeypatch):
    from mlcomp.grading import kernel

    real = kernel.Path.read_text

    def denied(self, *args, **kwargs):
        if self.name == "maps":
            raise PermissionError(self)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(kernel.Path, "read_text", denied)
    with pytest.raises(KernelDied, match="hid its memory"):
        resident(os.getpid())


def test_a_grader_process_ends_with_the_one_that_started_it():
    child = "import os, time; from mlcomp.grading.lifetime import end_with; end_with(os.getppid()); time.sleep(60)"
    parent = f"""
        import subprocess, sys, time
        print(subprocess.Popen([sys.executable, "-c", {child!r}]).pid, flush=True)
        time.sleep(60)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(parent)], stdout=subprocess.PIPE, text=True
    ) as process:
        pid = int(process.stdout.readline())
        time.sleep(1)
        os.kill(pid, 0)
        process.kill()
    for _ in range(200):
        if not os.path.exists(f"/proc/{pid}/cmdline") or not open(f"/proc/{pid}/cmdline").read():
            return
        time.sleep(0.1)
    pytest.fail("it lives on")
