"""How a student's process is started: inside bubblewrap (Linux), or plainly for one's own work.

Inside, there is Python with its packages, read-only, and a small scratch folder in memory. There is no network, no
other file, no other process, no privilege and no way to one (:mod:`mlcomp.grading.seccomp`), and nothing of the
environment in which the grader was started; the gradebook, the solutions and the submissions are not there at all.
As root the process becomes a user of its own; as an ordinary user it lives in a user namespace.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import mlcomp
from mlcomp.grading import seccomp
from mlcomp.grading.limits import Limits

# An unused user id each, so that the limit on processes of one submission does not count another's.
_FIRST_UID = 1_000_000_000
_TOOLS = ("bwrap", "setpriv", "prlimit")
_SCRATCH = "/tmp"


class SandboxMissing(RuntimeError):
    """There is no sandbox on this machine; the message says what to install."""


@cache
def why_not() -> str | None:
    """Return why submissions cannot be sandboxed here, or None if they can."""
    if not sys.platform.startswith("linux"):
        return "the sandbox (bubblewrap) exists on Linux only"
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} not found; install the packages bubblewrap and util-linux"
    version = subprocess.run(["bwrap", "--version"], capture_output=True, text=True).stdout
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < (0, 7):
        return f"{version.strip()} is too old; 0.7 or newer is needed"
    if not seccomp.is_known():
        return f"there is no filter of system calls for processors of type {platform.machine()}"
    with seccomp.filter_fd() as fd:
        command = [*_bwrap(Limits()), "--seccomp", str(fd), "true"]
        probe = subprocess.run(command, capture_output=True, text=True, pass_fds=(fd,))
    return None if probe.returncode == 0 else f"bubblewrap does not work here: {probe.stderr.strip()}"


def worker_command() -> list[str]:
    """Return the command of a student's process, without the number of the reply descriptor."""
    return [sys.executable, "-m", "mlcomp.grading.worker"]


def sandboxed(limits: Limits, *, slot: int, filter_fd: int) -> list[str]:
    """Return the command line of a student's process in the sandbox.

    Args:
        slot: a number that no other running submission has.
        filter_fd: where to read the filter of system calls, see :mod:`mlcomp.grading.seccomp`.
    Raises:
        SandboxMissing: there is no sandbox on this machine.
    """
    reason = why_not()
    if reason:
        raise SandboxMissing(reason)
    drop: list[str] = []
    if os.geteuid() == 0:
        uid = str(_FIRST_UID + slot % 1_000_000)
        drop = ["setpriv", "--reuid", uid, "--regid", uid, "--clear-groups", "--no-new-privs"]
        drop += ["--bounding-set=-all", "--inh-caps=-all"]
    caps = ["prlimit", f"--as={limits.memory}", f"--cpu={limits.cpu}", f"--nproc={limits.processes}"]
    caps += [f"--fsize={limits.scratch}", "--nofile=256", "--core=0"]
    return [*_bwrap(limits), "--seccomp", str(filter_fd), *drop, *caps, *worker_command()]


def environment() -> dict[str, str]:
    """Return the environment of an unsandboxed student's process: the usual one, without surprises from it."""
    return {**os.environ, **_quiet()}


def _quiet() -> dict[str, str]:
    return {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "0"}


def _bwrap(limits: Limits) -> list[str]:
    # bubblewrap stays as the first process inside, where its own environment can be read: it gets none.
    command = [shutil.which("env") or "env", "-i", shutil.which("bwrap") or "bwrap"]
    command += ["--unshare-net", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    command += ["--new-session", "--die-with-parent", "--hostname", "exercise"]
    if os.geteuid() != 0:  # as root a user namespace would hide the files of other users
        command += ["--unshare-user", "--uid", "65534", "--gid", "65534"]
    command += ["--ro-bind", "/usr", "/usr"]
    for top in ("bin", "sbin", "lib", "lib32", "lib64"):
        path = Path("/", top)
        if path.is_symlink():
            command += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            command += ["--ro-bind", str(path), str(path)]
    if Path("/etc/ld.so.cache").exists():
        command += ["--ro-bind", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    size = str(limits.scratch)
    command += ["--proc", "/proc", "--dev", "/dev", "--size", size, "--perms", "1777", "--tmpfs", _SCRATCH]
    command += ["--size", size, "--perms", "0700", "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]
    made: set[Path] = set()
    for folder in _python_folders():
        for parent in reversed(folder.parents[:-1]):
            if parent not in made and not parent.is_relative_to("/usr"):
                # Without this bubblewrap copies no permissions, and another user could not pass through.
                command += ["--perms", "0755", "--dir", str(parent)]
                made.add(parent)
        command += ["--ro-bind", str(folder), str(folder)]
    secret = Path(mlcomp.__file__).parent / "grading" / "solutions"
    if secret.is_dir():
        command += ["--tmpfs", str(secret), "--remount-ro", str(secret)]
    command += ["--remount-ro", "/", "--clearenv", "--chdir", _SCRATCH]
    for name, value in {"PATH": "/usr/bin:/bin", "HOME": _SCRATCH, "LANG": "C.UTF-8", **_quiet()}.items():
        command += ["--setenv", name, value]
    return command


def _python_folders() -> list[Path]:
    """Return the folders that hold Python, its packages and mlcomp, outer ones first and none twice."""
    folders = {Path(sys.prefix), Path(sys.base_prefix), Path(mlcomp.__file__).parent}
    folders |= {Path(p) for p in sys.path if Path(p).name in ("site-packages", "dist-packages")}
    # The interpreter may be a link into a third place.
    folders |= {Path(sys.executable).resolve().parents[1]}
    kept: list[Path] = []
    for folder in sorted(f.absolute() for f in folders if f.is_dir()):
        if not folder.is_relative_to("/usr") and not any(folder.is_relative_to(k) for k in kept):
            kept.append(folder)
    return kept
