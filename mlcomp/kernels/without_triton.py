"""What a page of the book does where Triton is missing: it says why, and shows what was stored instead.

Nothing here imports Triton, so :func:`mlcomp.kernels.interpret_without_gpu` is still in time.
"""

import ast
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

from mlcomp.extras import how_to_get


def unavailable() -> str:
    """Return why the kernels cannot be imported here, in a sentence; an empty string where they can."""
    if importlib.util.find_spec("triton") is not None:
        return ""
    if sys.platform != "linux":
        return "Triton runs on Linux, with or without a GPU, and this is another system."
    return f"Triton is not installed ({how_to_get('kernels')})."


def with_triton(stored: str) -> Callable[[Callable[[], str]], None]:
    """Return a decorator that runs a function at once where Triton is there, and else shows its stored result.

    Args:
        stored: the sentence that the function returned where Triton was there, in Markdown.

    Raises:
        AssertionError: Triton is there, and the function returns another sentence, so what is stored is out of date.
    """

    def run(function: Callable[[], str]) -> None:
        from IPython.display import Markdown, display

        if reason := unavailable():
            display(Markdown(f"{stored} *(Stored: this cell needs Triton. {reason})*"))
            return
        result = function()
        if result != stored:
            raise AssertionError(f"the stored result {stored!r} is not what came out: {result!r}")
        display(Markdown(result))

    return run


def show_kernel(module: str, *names: str) -> None:
    """Display the source of functions of ``mlcomp.kernels.<module>``, read from the file: it need not be imported."""
    from IPython.display import Code, display

    text = (Path(__file__).parent / f"{module}.py").read_text(encoding="utf-8")
    defined = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}
    if missing := [name for name in names if name not in defined]:
        raise ValueError(f"mlcomp.kernels.{module} defines no {', '.join(missing)}; it has {', '.join(defined)}")
    lines, parts = text.splitlines(), []
    for node in (defined[name] for name in names):
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        parts.append("\n".join(lines[first - 1 : node.end_lineno]))
    display(Code("\n\n".join(parts), language="python"))
