"""Running a model to look at it: eval mode, no gradients, hooks that come off again, batches of any form.

Syllabus: 2.01
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class StopForward(BaseException):
    """Raised in a hook to end a forward pass that has shown enough; no ``except Exception`` of a model catches it."""


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Take the hooks off again, whatever happens inside."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def call_model(model: nn.Module, batch: Any) -> Any:
    """Call ``model`` on one batch: a tensor, a tuple or list of positional or a mapping of keyword arguments.

    Tensors are moved to the device of the model's first parameter.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def move(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    if isinstance(batch, Tensor):
        return model(move(batch))
    if isinstance(batch, Mapping):
        return model(**{key: move(value) for key, value in batch.items()})
    if isinstance(batch, tuple | list):
        return model(*[move(value) for value in batch])
    raise TypeError(f"a batch is a tensor, a tuple or list, or a mapping, got {type(batch).__name__}")


def check_batches(batches: Iterable, *, again: str | None = None) -> None:
    """Raise if ``batches`` is one batch, or can be read only once while ``again`` (what for) needs it twice."""
    if isinstance(batches, Tensor | Mapping | str):
        raise TypeError(
            f"batches must be an iterable of batches, got one {type(batches).__name__}: "
            "wrap it as [batch], or cut it with batch.split(n)"
        )
    if again and isinstance(batches, Iterator):
        raise ValueError(
            f"batches is a one-shot {type(batches).__name__}, but {again} reads it several times: "
            "pass a list or a DataLoader"
        )


def check_called(calls: Mapping[str, int]) -> None:
    """Raise if a layer saw no sample: the batches were empty, or the model never calls the module."""
    silent = [name for name, count in calls.items() if not count]
    if len(silent) == len(calls):
        raise ValueError("no layer was called on any sample: batches is empty, or the model runs without its modules")
    if silent:
        raise ValueError(
            f"layer(s) {silent} saw no sample. They are unused, or the model reads their weight without calling them "
            "(nn.MultiheadAttention does so with out_proj): leave them out through layers="
        )
