"""What code refers to: the globals that it reads, what it assigns itself, and whether a module is one of your own."""

import dis
import functools
import hashlib
import importlib
import importlib.util
import itertools
import platform
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


@functools.cache
def installed(module: str | None) -> str | None:
    """Return version and hash of a module of Python, a package or this one; None for one of your own."""
    top = (module or "").partition(".")[0]
    if top not in sys.modules or top == "__main__":
        return None
    file = getattr(sys.modules.get(module or ""), "__file__", None)
    if file is None:
        return platform.python_version() if top in {*sys.builtin_module_names, *sys.stdlib_module_names} else None
    path = Path(file)
    ours = top == __name__.partition(".")[0]
    if not ours and not {"site-packages", "dist-packages"} & {*path.parts}:
        if not path.is_relative_to(sysconfig.get_path("stdlib")):
            return None
    version = getattr(sys.modules[top], "__version__", platform.python_version())
    return f"{module} {version} {hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ''}"


def found(module: str | None, name: str) -> Any:
    """Return what stands under a qualified name, as pickle would look it up; None if nothing does."""
    there: Any = sys.modules.get(module or "")
    for part in name.split("."):
        there = getattr(there, part, None)
    return there


def _parts(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yield the code and that of all functions, classes and comprehensions inside."""
    yield code
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _parts(inner)


def assigned(code: types.CodeType) -> set[str]:
    """Return the globals that the code itself assigns."""
    return {i.argval for part in _parts(code) for i in dis.get_instructions(part) if i.opname == "STORE_GLOBAL"}


def rebound(code: types.CodeType, free: frozenset[str]) -> set[str]:
    """Return those captured variables ``free`` that the code, or a function inside, assigns (``nonlocal``)."""
    found = {i.argval for i in dis.get_instructions(code) if i.opname == "STORE_DEREF" and i.argval in free}
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            found |= rebound(inner, free & {*inner.co_freevars} - {*code.co_cellvars})
    return found


def read_globals(code: types.CodeType, names: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the globals that the code reads, by name; of a module of your own only what is taken from it."""
    for part in _parts(code):
        steps = [i for i in dis.get_instructions(part) if i.opname not in ("CACHE", "EXTENDED_ARG", "PUSH_NULL")]
        for place, step in enumerate(steps):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME") and step.argval in names:
                yield _taken(step.argval, names[step.argval], steps[place + 1 :])
            elif step.opname == "IMPORT_NAME":
                yield from _imported(step.argval, steps[place - 2].argval, steps[place + 1 :], names)


def _taken(label: str, value: Any, following: list[dis.Instruction]) -> tuple[str, Any]:
    """Follow the attributes that are taken of a module of your own."""
    for step in following:
        if not isinstance(value, types.ModuleType) or installed(value.__name__) is not None:
            break
        if step.opname not in ("LOAD_ATTR", "LOAD_METHOD") or not hasattr(value, step.argval):
            break
        label, value = f"{label}.{step.argval}", getattr(value, step.argval)
    return label, value


def _imported(
    name: str, level: int, following: list[dis.Instruction], names: Mapping[str, Any]
) -> Iterator[tuple[str, Any]]:
    """Yield what an import inside a function brings: the names taken from the module, or the module."""
    try:
        full = importlib.util.resolve_name("." * level + name, names.get("__package__"))
        module = importlib.import_module(full)
    except ImportError:
        return  # the function will say so itself, or has an answer to it
    if following[0].opname != "IMPORT_FROM" or installed(full) is not None:
        yield full, module
        return
    for step in itertools.takewhile(lambda step: step.opname != "POP_TOP", following):  # the module is dropped there
        if step.opname == "IMPORT_FROM" and hasattr(module, step.argval):
            yield f"{full}.{step.argval}", getattr(module, step.argval)
