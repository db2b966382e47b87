"""Blocks that a model calls one after the other, found by watching it run, not by their names.

Block i + 1 follows block i if it is called with what block i returned, and what else it is given was given to block
i, too, or was there before the first block ran. Then a block can be run on its own, on inputs that were kept.
Source: Frantar et al. 2023, GPTQ, arXiv:2210.17323, section 4 (block by block).   Syllabus: 2.01
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from mlcomp.layerwise.matrix import Layer
from mlcomp.layerwise.nested import Place, changed, entries
from mlcomp.layerwise.running import call_model, hooked

PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, Enum)

Arguments = tuple[tuple, dict[str, Any]]


@dataclass(frozen=True)
class Source:
    """Where an entry of a block's arguments comes from.

    Attributes:
        kind: "output" of the block before, "kept" from that block's arguments, "beside" (made before the chain
            began), "value" (a number or a word that is always the same), or "unknown".
        place: in the output or the arguments of the block before; of one from beside, in the block's own.
        value: of a "value".
    """

    kind: str
    place: Place = ()
    value: Any = None


@dataclass(frozen=True)
class Chain:
    """Blocks in the order of their calls, each called once in a pass.

    Attributes:
        links: for each block after the first, its arguments with a :class:`Source` for each entry.
        inside: name of a layer → the index of its block; only layers that are in exactly one.
    """

    blocks: tuple[nn.Module, ...]
    links: tuple[Arguments, ...]
    inside: Mapping[str, int]

    @property
    def beside(self) -> dict[int, list[Place]]:
        """Index of a block → the places of its arguments that come from beside the chain."""
        places = {
            i: [s.place for _, s in entries(link) if s.kind == "beside"] for i, link in enumerate(self.links, 1)
        }
        return {i: found for i, found in places.items() if found}


class Token(NamedTuple):
    """A tensor as it is at one moment: the same for the same tensor, until it is written into."""

    number: int
    version: int


class Tokens:
    """Gives tensors their tokens, and keeps none of them alive."""

    def __init__(self) -> None:
        self._numbers: Any = WeakTensorKeyDictionary()
        self._last = 0

    def of(self, x: Tensor) -> Token:
        """Return the token of ``x`` as it is now."""
        if x.is_inference():  # does not count its changes, so each look at it stands for itself
            self._last += 1
            return Token(-self._last, 0)
        if x not in self._numbers:
            self._last += 1
            self._numbers[x] = self._last
        return Token(self._numbers[x], x._version)

    def numbers(self, value: Any) -> list[int]:
        """Return the numbers of all tensors in ``value``."""
        return [x.number for x in self.seen(value).values() if isinstance(x, Token)]

    def seen(self, value: Any) -> dict[Place, Any]:
        """Return the entries by their places, with tokens for tensors."""
        return {place: self.of(x) if isinstance(x, Tensor) else x for place, x in entries(value)}


@dataclass
class Call:
    """One call of a module, as seen from outside: before its own hooks, and after them.

    ``given`` is let go when the call ends. Times count the beginnings and ends of all calls.
    """

    module: nn.Module
    start: int
    given: Arguments | None
    arguments: dict[Place, Any]
    end: int = -1
    output: dict[Place, Any] = field(default_factory=dict)
    unchanged: bool = False

    def finish(self, output: Any, tokens: Tokens, end: int) -> None:
        """Note what came back, and whether the arguments were written into."""
        now = tokens.seen(self.given)
        self.unchanged = all(now[p] == x for p, x in self.arguments.items() if isinstance(x, Token))
        self.output = {place: x for place, x in tokens.seen(output).items() if isinstance(x, Token)}
        self.given, self.end = None, end


def link_of(before: Call, given: Arguments, arguments: Mapping[Place, Any]) -> Arguments:
    """Return where each entry of a call's arguments comes from, seen from the call before it."""
    output = {token: place for place, token in before.output.items()}
    kept = {token: place for place, token in before.arguments.items() if isinstance(token, Token)}

    def source(place: Place, entry: Any) -> Source:
        now = arguments[place]
        if isinstance(now, Token):
            if now in output:
                return Source("output", output[now])
            return Source("kept", kept[now]) if now in kept else Source("beside", place)
        if isinstance(entry, PLAIN):
            there = before.arguments.get(place, before)  # the call itself: no entry is one
            same = type(there) is type(entry) and there == entry
            return Source("kept", place) if same else Source("value", value=entry)
        same_object = [at for at, x in before.arguments.items() if x is entry]
        return Source("kept", same_object[0]) if same_object else Source("unknown")

    return changed(given, source)


def follows(link: Arguments) -> bool:
    """Return whether a call with such a link follows the one before it."""
    kinds = {source.kind for _, source in entries(link)}
    return "output" in kinds and "unknown" not in kinds


def find_chains(model: nn.Module, batch: Any, layers: Mapping[str, Layer], names: Iterable[str]) -> list[Chain]:
    """Run ``model`` (in eval mode already) on one batch; return its chains, in the order of their calls.

    Of all chains, those are taken that leave the least to run for the layers ``names``: their blocks are small and
    hold many of these. A chain has two such blocks at least.
    Cost: one forward pass.
    """
    record = _all_calls(model, batch)
    owner = {name: id(_owner(model, name, layers[name])) for name in names}
    wanted = set(owner.values())
    holds = [sum(id(m) in wanted for m in call.module.modules()) for call in record.calls]
    chains: list[tuple[int, Chain]] = []
    free = _without_wholes(record, holds)
    while path := _best_path(record, holds, free)[1]:
        start, end = record.calls[path[0]].start, record.calls[path[-1]].end
        free = [i for i in free if record.calls[i].end < start or record.calls[i].start > end]
        blocks = tuple(record.calls[i].module for i in path)
        links = tuple(record.links[pair] for pair in pairwise(path))
        chains.append((start, Chain(blocks, links, _inside(blocks, owner))))
    return [chain for _, chain in sorted(chains, key=lambda pair: pair[0])]


def _owner(model: nn.Module, name: str, layer: Layer) -> nn.Module:
    """Return the layer, or the module that an expert's parameter belongs to."""
    if any(module is layer for module in model.modules()):
        return layer
    return model.get_submodule(name.rpartition(".")[0].rpartition(".")[0])


def _inside(blocks: tuple[nn.Module, ...], owner: Mapping[str, int]) -> dict[str, int]:
    members = [{id(m) for m in block.modules()} for block in blocks]
    where = {name: [i for i, inner in enumerate(members) if key in inner] for name, key in owner.items()}
    return {name: found[0] for name, found in where.items() if len(found) == 1}


@dataclass
class _Record:
    """All calls of one pass in the order of their beginnings, and what follows what.

    Attributes:
        links: (i, j) → where the arguments of call j come from, seen from call i; both are of modules called once.
        first: token → when a module was first given it, or returned it.
    """

    calls: list[Call] = field(default_factory=list)
    links: dict[tuple[int, int], Arguments] = field(default_factory=dict)
    first: dict[Token, int] = field(default_factory=dict)

    def inner(self, i: int) -> list[int]:
        """Return the calls within call i."""
        end = self.calls[i].end
        return [j for j in range(i + 1, len(self.calls)) if self.calls[j].end < end]

    def older(self, pair: tuple[int, int], start: int) -> bool:
        """Return whether all that comes from beside was there before ``start``, so that no later call made it."""
        given = self.calls[pair[1]].arguments
        beside = [s.place for _, s in entries(self.links[pair]) if s.kind == "beside"]
        return all(self.first[given[place]] < start for place in beside)


def _all_calls(model: nn.Module, batch: Any) -> _Record:
    record, tokens = _Record(), Tokens()
    calls, links = record.calls, record.links
    makers: dict[Token, list[int]] = {}
    stack: list[int] = []
    time = 0

    def enter(module: nn.Module, args: tuple, kwargs: dict) -> None:
        nonlocal time
        time += 1
        call = Call(module, time, (args, kwargs), tokens.seen((args, kwargs)))
        given = {x for x in call.arguments.values() if isinstance(x, Token)}
        for i in {i for token in given for i in makers.get(token, ())}:
            links[i, len(calls)] = link_of(calls[i], (args, kwargs), call.arguments)
        record.first |= {token: time for token in given if token not in record.first}
        stack.append(len(calls))
        calls.append(call)

    def leave(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        nonlocal time
        time += 1
        index = stack.pop()
        calls[index].finish(output, tokens, time)
        for token in calls[index].output.values():
            makers.setdefault(token, []).append(index)
            record.first.setdefault(token, time)

    with hooked(on_calls(model.modules(), enter, leave)):
        call_model(model, batch)
    count = Counter(id(call.module) for call in calls)
    good = [count[id(call.module)] == 1 and call.unchanged for call in calls]
    record.links = {(i, j): link for (i, j), link in links.items() if good[i] and good[j] and follows(link)}
    return record


def on_calls(modules: Iterable[nn.Module], enter: Any, leave: Any = None) -> list[RemovableHandle]:
    """Register hooks that see what the caller gives, before a module's own, and what it gets, after them."""
    handles = []
    for module in modules:
        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True))
        if leave is not None:
            handles.append(module.register_forward_hook(leave, with_kwargs=True))
    return handles


def _without_wholes(record: _Record, holds: list[int]) -> list[int]:
    """Return the calls but for those in which there is a clearly better chain: a whole decoder, say."""
    own = [_gain(record, holds, i) for i in range(len(record.calls))]
    return [i for i in range(len(own)) if _best_path(record, holds, record.inner(i))[0] <= 1.2 * own[i]]


def _gain(record: _Record, holds: list[int], i: int) -> int:
    """Return what a pass for each of the call's layers saves, in calls, if it runs this call alone."""
    call = record.calls[i]
    return holds[i] * (len(record.calls) - (call.end - call.start + 1) // 2)


def _best_path(record: _Record, holds: list[int], among: list[int]) -> tuple[int, list[int]]:
    """Return the gain and the calls of the best chain; none of it if it has less than two blocks with layers."""
    gain: dict[int, int] = {}
    before: dict[int, int | None] = {}
    origin: dict[int, int] = {}
    into: dict[int, list[int]] = {}
    inner = set(among)
    for i, j in record.links:
        if i in inner and j in inner:
            into.setdefault(j, []).append(i)
    for j in among:  # in the order of their beginnings
        fits = [i for i in into.get(j, ()) if gain[i] and record.older((i, j), origin[i])]
        before[j] = best = max(fits, key=lambda i: gain[i], default=None)
        origin[j] = record.calls[j].start if best is None else origin[best]
        gain[j] = _gain(record, holds, j) + (0 if best is None else gain[best])
    path: list[int] = []
    at = max(gain, key=lambda i: gain[i], default=None)
    while at is not None:
        path.insert(0, at)
        at = before[at]
    return (gain[path[-1]], path) if sum(holds[i] > 0 for i in path) > 1 else (0, [])
