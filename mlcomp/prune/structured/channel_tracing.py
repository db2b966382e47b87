"""A mode in which every operation of torch hands the labels of channels on, whatever code calls it."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mlcomp.prune.structured.channel_labels import LabelTrace
from mlcomp.prune.structured.channel_rules import ENTRYWISE, MOVES, RULES, entrywise, fix_all, move, tensors


class ChannelTracing(TorchDispatchMode):
    """While active, every operation hands the labels of what it reads on to what it returns."""

    def __init__(self, trace: LabelTrace) -> None:
        super().__init__()
        self.trace = trace

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler, seconds long, to keep it out of here

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        _follow(self.trace, func, args, kwargs or {}, out)
        return out


def _follow(trace: LabelTrace, func: Any, args: tuple, kwargs: dict, out: Any) -> None:
    read = tensors([args, kwargs])
    trace.read.update(map(id, read))
    if not any(trace.get(x) for x in read):
        return
    name = func.overloadpacket.__name__.removesuffix("_")
    if name in RULES:
        RULES[name](trace, func, args, kwargs, out)
    elif func.is_view or name in MOVES:
        move(trace, func, args, kwargs, out)
    elif torch.Tag.pointwise in func.tags or name in ENTRYWISE:
        for result in tensors(out):
            entrywise(trace, read, result)
    else:
        for x in read:
            fix_all(trace, x, f"the operation {name} reads them, and what it does with channels is not known")
