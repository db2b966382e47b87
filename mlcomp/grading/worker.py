"""The student's process: runs cells in an IPython shell, calls functions by name, returns raw values.

Started by :mod:`mlcomp.grading.kernel` as ``python -m mlcomp.grading.worker FD``. Requests come on standard input,
replies go to the file descriptor FD, whatever cells print goes to standard output and error. Everything that leaves
this process is the student's word; the grader only looks at values.
"""

import builtins
import os
import signal
import sys
import traceback
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from mlcomp.grading import wire
from mlcomp.grading.lifetime import end_with


class OutOfTime(BaseException):
    """Raised in the running cell when its time is up; not an Exception, so `except Exception` does not stop it."""


def main() -> None:
    """Serve requests until standard input closes."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(int(sys.argv[1]), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # whatever else reads gets the end of file at once
    builtins.input = _no_input
    end_with(os.getppid())
    shell = _shell()
    home = os.getpid()
    while header := requests.read(wire.HEADER.size):
        sizes = wire.HEADER.unpack(header)
        request = wire.unpack(*(requests.read(size) for size in sizes))
        reply = _serve(shell, request)
        if os.getpid() != home:
            os._exit(0)  # a child that a cell forked and forgot: it must not go on as a second server
        _flush()
        replies.write(_packed(reply))
        replies.flush()


class _Shell(InteractiveShell):
    """A shell that runs Python. What needs a screen, a terminal or an installer is passed over and says so."""

    def run_line_magic(self, magic_name: str, line: str, _stack_depth: int = 1) -> Any:
        """Run a magic that only runs Python; pass over any other."""
        if magic_name in _PYTHON_MAGICS:
            return super().run_line_magic(magic_name, line, _stack_depth + 1)
        return _passed_over(f"%{magic_name}")

    def run_cell_magic(self, magic_name: str, line: str, cell: str) -> Any:
        """Run a magic that only runs Python; pass over the cell of any other."""
        if magic_name in _PYTHON_MAGICS:
            return super().run_cell_magic(magic_name, line, cell)
        return _passed_over(f"the cell of %%{magic_name}")

    def system(self, cmd: str) -> None:
        """Pass over a command for the terminal."""
        _passed_over(f"!{cmd}")

    def getoutput(self, cmd: str, split: bool = True, depth: int = 0) -> list[str]:
        """Pass over a command for the terminal; nothing was printed."""
        _passed_over(f"!{cmd}")
        return []


_PYTHON_MAGICS = frozenset({"capture", "prun", "time", "timeit"})


def _passed_over(what: str) -> None:
    print(f"passed over when graded: {what}")


def _no_input(prompt: object = "") -> str:
    raise EOFError("input() waits for someone to type, and nobody does when a notebook is graded")


def _shell() -> InteractiveShell:
    config = Config()
    config.InteractiveShell.colors = "NoColor"
    config.InteractiveShell.xmode = "Plain"
    config.HistoryManager.enabled = False
    return _Shell.instance(config=config)


def _serve(shell: InteractiveShell, request: dict[str, Any]) -> dict[str, Any]:
    def ring(*_: object) -> None:
        raise OutOfTime(f"stopped after {request['seconds']:g} s")

    try:
        signal.signal(signal.SIGALRM, ring)  # again each time: a cell may have changed it
        signal.setitimer(signal.ITIMER_REAL, request["seconds"])
        if request["op"] == "run":
            return _run(shell, request["code"])
        if request["op"] == "call":
            return _call(shell.user_ns[request["name"]], request["args"], request["kwargs"])
        return {"value": shell.user_ns[request["name"]]}
    except BaseException as error:  # OutOfTime, SystemExit and KeyboardInterrupt as well: the shell lives on
        return {"error": _short(error), "type": type(error).__name__, "trace": _trace(error)}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _run(shell: InteractiveShell, code: str) -> dict[str, Any]:
    result = shell.run_cell(code, store_history=False)
    error = result.error_before_exec or result.error_in_exec
    return {} if error is None else {"error": _short(error), "type": type(error).__name__}


def _call(function: Any, args: list[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    before = wire.pack({"args": args, "kwargs": kwargs})
    value = function(*args, **kwargs)
    return {"value": value, "changed": wire.pack({"args": args, "kwargs": kwargs}) != before}


def _packed(reply: dict[str, Any]) -> bytes:
    try:
        return wire.pack(reply)
    except Exception as error:  # the value itself cannot be sent
        return wire.pack({"error": str(error)[:2000], "type": type(error).__name__})


def _short(error: BaseException) -> str:
    if isinstance(error, SyntaxError):  # its own text names a file that no one can open
        return f"{type(error).__name__}: {error.msg} (line {error.lineno})"[:2000]
    if isinstance(error, ModuleNotFoundError):
        return f"{type(error).__name__}: {error}: it is not installed where notebooks are graded"[:2000]
    return f"{type(error).__name__}: {error}"[:2000]


def _trace(error: BaseException) -> str:
    """Return where in the student's cells the error came from."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "ipython-input" in f.filename]
    return "".join(traceback.format_list(frames))[-4000:]


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # a cell closed or replaced it; what it held is the student's loss
            pass


if __name__ == "__main__":
    main()
