"""Runs the checks of an assignment in the grader's process, on values from the student's process."""

import contextlib
import io
import traceback
from collections.abc import Callable
from typing import Any

from mlcomp.grading import notebook
from mlcomp.grading.assignment import Assignment, Question, is_left_out, marks, source
from mlcomp.grading.kernel import Kernel


class StudentError(Exception):
    """The student's code raised an error when a check called it."""


class Examiner:
    """The course's side of one submission: the source notebook's locked cells and checks.

    The names that the student defines stand for calls into the student's process. A call sends the arguments and
    receives a value made of plain numbers and arrays; no object of the student's ever lives here.
    """

    def __init__(self, assignment: Assignment, kernel: Kernel, *, seed: int) -> None:
        """``seed`` decides the checks' random numbers."""
        self.assignment, self.kernel, self.seed = assignment, kernel, seed
        self.namespace: dict[str, Any] = {"__name__": "mlcomp_checks"}
        self.stopped: dict[str, str] = {}  # the error that ended the cell that was to define a name (empty: none)
        for cell in assignment.cells:
            mark = marks(cell)
            locked = cell["cell_type"] == "code" and not mark.get("grade") and not mark.get("solution")
            if locked and not is_left_out(cell):
                self._execute(source(cell), mark.get("grade_id", "cell"))

    def examine(self, question: Question) -> str | None:
        """Run a question's checks; return None if all pass, else what is wrong, for the student.

        Raises:
            KernelDied: the student's process died meanwhile.
        """
        notebook.reseed(self.seed)
        try:
            for name in question.functions:
                self.namespace[name] = self._remote(name)
            for name in question.values:
                self.namespace[name] = self._answer({"op": "get", "name": name})["value"]
            self._execute(source(self.assignment.by_id[question.id]), question.id)
        except (AssertionError, StudentError) as problem:
            return str(problem) or "a check failed"
        except (
            TypeError,
            ValueError,
            RuntimeError,
            IndexError,
            KeyError,
            AttributeError,
            ArithmeticError,
        ) as problem:
            # The check itself tripped over the value, for instance over a number where a tensor is due.
            line = traceback.extract_tb(problem.__traceback__)[-1].line
            return f"the checks cannot use your result: {type(problem).__name__}: {problem} ({line})"[:1000]
        return None

    def _execute(self, code: str, name: str) -> None:
        # optimize=0: asserts count, however Python was started.
        compiled = compile(code, f"<{name}>", "exec", dont_inherit=True, optimize=0)
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compiled, self.namespace)

    def _remote(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            reply = self._answer({"op": "call", "name": name, "args": list(args), "kwargs": kwargs})
            if reply.get("changed"):
                raise AssertionError(
                    f"{name} changed its argument in place: the caller still needs it. Work on a copy (.clone())."
                )
            return reply.get("value")

        call.__name__ = name
        return call

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        seconds = self.kernel.limits.call
        reply = self.kernel.request({**request, "seconds": seconds}, seconds)
        if "error" not in reply:
            return reply
        name, kind, text = request["name"], str(reply.get("type", "")), str(reply["error"])[:1000]
        if kind == "NotImplementedError":
            raise StudentError("not answered yet")
        if kind == "KeyError" and text == f"KeyError: '{name}'":
            error = self.stopped.get(name)
            why = f"stops with {error}" if error else "was removed, or defines it under another name"
            raise StudentError(f"{name} is not defined: its cell {why}")
        raise StudentError(f"{name} failed: {text}")
