"""Ask a method whether it would take a layer, before any work.

The method is called on stand-ins for W and H: they have shape, dtype and finite values, as checks of arguments ask
for, and end the call at the first arithmetic. A group size that does not divide the inputs of the last layer is thus
found before the first one is compressed.   Syllabus: 2.01
"""

import builtins
import copy
import functools
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# Questions about a tensor, and changes of dtype; what else is not asked by a check is arithmetic.
_ASKED = {Tensor.numel, Tensor.size, Tensor.dim, Tensor.stride, Tensor.element_size, Tensor.__len__, torch.numel}
_ASKED |= {Tensor.is_floating_point, Tensor.is_complex, Tensor.is_contiguous, torch.is_floating_point}
_KEPT = {Tensor.float, Tensor.double, Tensor.to, Tensor.clone, torch.clone, Tensor.detach, Tensor.contiguous}
_CHECKS = ("mlcomp.checks", "mlcomp.context")

# What a function of the user's may call and still leave no trace.
_BUILTINS = {"abs", "bool", "dict", "enumerate", "float", "int", "isinstance", "len", "list", "max", "min", "range"}
_BUILTINS |= {"round", "set", "sorted", "str", "sum", "tuple", "zip", "ValueError", "TypeError"}


class _Arithmetic(BaseException):
    """The checks are over; no ``except Exception`` of a method catches it."""


class _StandIn(Tensor):
    """A tensor that answers questions and does not compute."""

    @classmethod
    def __torch_function__(cls, func: Any, kinds: Any, args: tuple = (), kwargs: Any = None) -> Any:
        asked = func in _ASKED or func in _KEPT or getattr(func, "__name__", "") == "__get__"
        if not asked and not _from_a_check():
            raise _Arithmetic
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        return result.as_subclass(cls) if func in _KEPT else result


def _from_a_check() -> bool:
    """Return whether what is being done with a stand-in is done by a check, whatever type checkers stand between."""
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_globals["__name__"].startswith((__name__, "jaxtyping", "beartype")):
        frame = frame.f_back
    return frame.f_globals["__name__"] in _CHECKS


def refusal(method: Callable[..., Any], shapes: Iterable[tuple[int, ...]], dtype: torch.dtype) -> str | None:
    """Return what ``method`` says against tensors of these shapes, or None.

    Only functions are asked, as they are or in functools.partial. One of the user's own is asked if it refers to
    nothing but this library, torch, plain values and containers, and it works on copies of these: it may count its
    calls or keep what it is given, and this call leaves no trace.
    """
    harmless = _harmless(method)
    if harmless is None:
        return None
    try:
        harmless(*(torch.zeros(shape, dtype=dtype).as_subclass(_StandIn) for shape in shapes))
    except ValueError as problem:
        return str(problem)
    except (Exception, _Arithmetic):  # a stand-in is no tensor: what else goes wrong says nothing
        return None
    return None


def _harmless(method: Any) -> Callable[..., Any] | None:
    if isinstance(method, functools.partial):
        inner = _harmless(method.func)
        return None if inner is None else functools.partial(inner, *method.args, **method.keywords)
    if not isinstance(method, types.FunctionType):
        return None
    if _is_ours(method):
        return method
    try:
        captured = [cell.cell_contents for cell in method.__closure__ or ()]
    except ValueError:  # a cell that is still empty
        return None
    names = set(method.__code__.co_names)
    scope = {name: value for name, value in method.__globals__.items() if name in names}
    if not all(_is_plain(value) for value in (*scope.values(), *captured)):
        return None
    if names & (set(vars(builtins)) - _BUILTINS - set(scope)):
        return None
    scope = {name: _own(value) for name, value in scope.items()} | {"__builtins__": builtins}
    cells = tuple(types.CellType(_own(value)) for value in captured)
    result = types.FunctionType(method.__code__, scope, method.__name__, method.__defaults__, cells)
    result.__kwdefaults__ = method.__kwdefaults__
    return result


def _own(value: Any) -> Any:
    return copy.copy(value) if isinstance(value, list | dict | set) else value


def _is_ours(value: Any) -> bool:
    return isinstance(value, types.FunctionType) and value.__module__.partition(".")[0] == "mlcomp"


def _is_plain(value: Any) -> bool:
    plain = isinstance(value, int | float | str | bytes | tuple | list | dict | set | torch.dtype | type(None))
    return plain or _is_ours(value) or value is torch
