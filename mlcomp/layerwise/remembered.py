"""Outputs of what is finished in a block, kept from one run of the block to the next, which need not make them again.

A block is run once for each of its stages. What a finished linear layer returns for the same input is the same each
time, and most of the time of a run; so is what a part of the block returns whose layers are all finished, such as its
attention. That the input is the same is seen, not assumed: its products with random numbers are compared.

Syllabus: 2.01
"""

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from mlcomp.layerwise.chains import PLAIN, Tokens
from mlcomp.layerwise.fit import DTYPES
from mlcomp.layerwise.nested import Place, entries

# What may be kept, as a share of the bytes of the model's parameters. It goes to what is finished first: of a small
# model's block on a few thousand tokens to the attention, which is asked for most often.
SHARE = 0.02


@dataclass
class Room:
    """Bytes that may still be kept."""

    left: int


@dataclass(frozen=True)
class _Given:
    """One entry of a call's arguments, as it was.

    Attributes:
        what: the token of a tensor; what else is no number or word is known by its type, being a copy each time.
        marks: of a tensor of floats.
    """

    what: Any
    marks: Tensor | None = None

    def same(self, other: "_Given") -> bool:
        """Return whether both are the same tensor, or have the same marks, or are the same value."""
        if self.marks is None or other.marks is None or self.what == other.what:
            return bool(self.what == other.what)
        return torch.equal(self.marks, other.marks) and bool(torch.isfinite(self.marks).all())


@dataclass(frozen=True)
class _Kept:
    """An output, the versions that it had (it must not have been written into), and what it was made of."""

    output: Any
    versions: list[int]
    given: Mapping[Place, _Given]
    weights: list[int]
    nbytes: int

    def fits(self, given: Mapping[Place, _Given], weights: list[int]) -> bool:
        """Return whether a call with these arguments and weights would return the same."""
        if self.weights != weights or self.versions != _versions(_tensors(self.output)):
            return False
        return self.given.keys() == given.keys() and all(self.given[p].same(x) for p, x in given.items())


class Remembered:
    """What finished parts of a block, layers or larger ones, returned in its run on one batch."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._kept: dict[str, _Kept] = {}
        self._tokens = Tokens()

    def clear(self) -> None:
        """Let go of everything."""
        self._forget(list(self._kept))

    @contextmanager
    def used(self, parts: Mapping[str, nn.Module]) -> Iterator[None]:
        """Within this, these modules return what they returned before where their arguments are the same."""
        for name, module in parts.items():
            module.forward = partial(self._forward, name, module)
        try:
            yield
        finally:
            for module in parts.values():
                del module.forward

    def _forward(self, name: str, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        given = {place: self._look(x) for place, x in entries((args, kwargs))}
        held = [*module.parameters(), *module.buffers()]
        weights = _versions(held)
        kept = self._kept.get(name)
        if kept is not None and kept.fits(given, weights):
            return kept.output
        self._forget([name])
        output = type(module).forward(module, *args, **kwargs)
        tensors = _tensors(output)
        nbytes, inner = sum(x.nbytes for x in tensors), [key for key in self._kept if key.startswith(f"{name}.")]
        known = all(isinstance(x, (Tensor, *PLAIN)) for _, x in entries(output))
        room = self._room.left + sum(self._kept[key].nbytes for key in inner)
        if nbytes <= room and known and not any(x.is_inference() for x in (*tensors, *held)):
            self._forget(inner)  # nobody asks them any more
            self._room.left -= nbytes
            self._kept[name] = _Kept(output, _versions(tensors), given, weights, nbytes)
        return output

    def _forget(self, names: list[str]) -> None:
        for name in names:
            if name in self._kept:
                self._room.left += self._kept.pop(name).nbytes

    def _look(self, x: Any) -> _Given:
        if not isinstance(x, Tensor):
            return _Given(x if isinstance(x, (nn.Module, *PLAIN)) else type(x))
        plain = x.dtype in DTYPES and x.layout == torch.strided and x.ndim > 0
        return _Given(self._tokens.of(x), x @ _random(x.shape[-1], x.dtype) if plain else None)


def can_remember(layer: Any) -> TypeGuard[nn.Linear]:
    """Return whether the layer computes what a linear layer does and nothing else, in the memory of the CPU."""
    if not isinstance(layer, nn.Linear) or type(layer).forward is not nn.Linear.forward or "forward" in vars(layer):
        return False
    return layer.weight.is_cpu and not layer.weight.is_inference()


def _tensors(output: Any) -> list[Tensor]:
    return [x for _, x in entries(output) if isinstance(x, Tensor)]


def _versions(tensors: list[Any]) -> list[int]:
    """Return how often each was written into; one made in inference mode does not count it, and is not kept."""
    return [-1 if x.is_inference() else x._version for x in tensors]


@functools.lru_cache(maxsize=16)
def _random(size: int, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # a tensor made within it could not be used outside
        generator = torch.Generator().manual_seed(0)
        return torch.randn(size, generator=generator, dtype=torch.float32).to(dtype)
