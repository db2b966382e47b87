"""The caller's context stays outside: a result depends on the arguments, not on what surrounds the call.

Under ``torch.autocast`` a matrix product returns bfloat16, after ``torch.set_default_dtype`` a new tensor has another
dtype, in ``torch.inference_mode`` a new weight can never be trained. None of it is meant for the arithmetic in here.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])

AUTOCAST = ("cpu", "cuda", "mps", "xpu")


def isolated(function: F) -> F:
    """Let ``function`` run as if its caller had set nothing: no autocast, no inference mode, float32, on the CPU.

    Float32 and the CPU are the defaults of new tensors; what is computed from an argument keeps that one's device.
    Gradients stay as the caller has them: recorded or not. Results are ordinary tensors, also of arguments that were
    made in inference mode (they are copied first).
    Cost: a few microseconds a call; calls from within pay no more.
    """
    return _isolated(function, defaults=True)


def isolated_run(function: F) -> F:
    """The same for a function that runs its caller's model, method or loss: default dtype and device stay.

    The caller's code may count on these. A model that is meant to run under autocast says so in its ``forward``.
    """
    return _isolated(function, defaults=False)


def _isolated(function: F, *, defaults: bool) -> F:
    @wraps(function)
    def outside(*args: Any, **kwargs: Any) -> Any:
        plain = not _has_modes() and not (defaults and _has_defaults())
        if plain and not any(map(_is_inference, args)) and not any(map(_is_inference, kwargs.values())):
            return function(*args, **kwargs)
        with _plain(defaults=defaults):
            return function(*map(_ordinary, args), **{name: _ordinary(value) for name, value in kwargs.items()})

    return cast(F, outside)


def _has_modes() -> bool:
    return torch.is_inference_mode_enabled() or any(map(torch.is_autocast_enabled, AUTOCAST))


def _has_defaults() -> bool:
    new = torch.empty(0)  # shows both defaults, sooner than asking for each
    return new.dtype is not torch.float32 or not new.is_cpu


@contextmanager
def _plain(*, defaults: bool) -> Iterator[None]:
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())  # leaving inference mode would switch gradients on
        for device in filter(torch.is_autocast_enabled, AUTOCAST):
            stack.enter_context(torch.autocast(device, enabled=False))
        if defaults and _has_defaults():
            stack.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(torch.float32)
            stack.enter_context(torch.device("cpu"))
        yield


def _is_inference(value: Any) -> bool:
    """Return whether ``value`` is, or as a list, tuple or dict holds, a tensor made in inference mode."""
    if isinstance(value, Tensor):
        return value.is_inference()
    if type(value) is dict:
        return any(map(_is_inference, value.values()))
    return type(value) in (list, tuple) and any(map(_is_inference, value))


def _ordinary(value: Any) -> Any:
    """Return ``value`` with copies in the place of such tensors."""
    if not _is_inference(value):
        return value
    if isinstance(value, Tensor):
        return value.clone()
    if type(value) is dict:
        return {name: _ordinary(entry) for name, entry in value.items()}
    return type(value)(map(_ordinary, value))
