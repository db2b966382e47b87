"""Outputs of what is finished in a block, kept from one run of the block to the next, which need not make them again.

A block is run once for each of its stages. What a finished linear layer returns for the same input is the same each
time, and most of the time of a run; so is what a part of the block returns whose layers are all finished, such as its
attention. Where all but its last layer are finished, and the part returns what that one does, the last layer's input
is kept: all that comes before it need not run again, while it is compressed or after. That the input is the same is
seen, not assumed: its products with random numbers are compared.

Syllabus: 2.01
"""

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from mlcomp.layerwise.chains import PLAIN, Tokens
from mlcomp.layerwise.fit import DTYPES
from mlcomp.layerwise.nested import Place, changed, entries
from mlcomp.layerwise.running import hooked

HERE = object()
UNCOUNTED = -1

# What may be kept, as a share of the bytes of the model's parameters. It goes to what is there first: of a small
# model's block on a few thousand tokens to the attention, which is asked for most often, then to what the last layer
# of the other half is given, on some of the batches. All of it would be 6.4 % of SmolLM2, and too much memory.
SHARE = 0.05


@dataclass(frozen=True)
class End:
    """How a part of a block ends: it returns what its last layer does, called once, and nothing else.

    Attributes:
        layer: the name of that layer.
        form: what the part returns, with HERE in place of the layer's output.
    """

    layer: str
    form: Any


@dataclass(frozen=True)
class Part:
    """A part of a block, and how it ends, if that is known; ``last`` is the layer of its end."""

    module: nn.Module
    end: End | None = None
    last: nn.Module | None = None


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
    """An output, or arguments, the versions that they had (nobody may have written into them), and their origin."""

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
    def used(self, finished: Mapping[str, Part], ending: Mapping[str, Part] = MappingProxyType({})) -> Iterator[None]:
        """Within this, finished parts return what they returned before where their arguments are the same.

        Of parts that are ``ending``, in which all layers but the last are finished, only that one is called.
        """
        for name, part in finished.items():
            part.module.forward = partial(self._finished, name, part)
        for name, part in ending.items():
            part.module.forward = partial(self._ending, name, part)
        try:
            yield
        finally:
            for part in (*finished.values(), *ending.values()):
                del part.module.forward

    def _finished(self, name: str, part: Part, *args: Any, **kwargs: Any) -> Any:
        given, weights = self._seen(args, kwargs), _weights(part.module)
        kept = self._kept.get(name)
        if kept is not None and kept.fits(given, weights):
            return kept.output
        self._forget([name])
        found = self._by_the_last(name, part, given)
        output = type(part.module).forward(part.module, *args, **kwargs) if found is None else found
        self._keep(name, name, output, given, weights)
        return output

    def _ending(self, name: str, part: Part, *args: Any, **kwargs: Any) -> Any:
        assert part.last is not None
        given, weights = self._seen(args, kwargs), _weights(part.module, but=part.last)
        found = self._by_the_last(name, part, given)
        if found is not None:
            return found

        def note(module: nn.Module, args: tuple, kwargs: dict) -> None:  # before whoever ends the run here
            self._keep(f"{name}.", name, (args, kwargs), given, weights)

        with hooked([part.last.register_forward_pre_hook(note, prepend=True, with_kwargs=True)]):
            return type(part.module).forward(part.module, *args, **kwargs)

    def _by_the_last(self, name: str, part: Part, given: Mapping[Place, _Given]) -> Any:
        """Return what the part returns, of its last layer alone; None if that one's input is not there."""
        kept = self._kept.get(f"{name}.")
        if kept is None or part.end is None or part.last is None:
            return None
        if not kept.fits(given, _weights(part.module, but=part.last)):
            return None
        args, kwargs = kept.output
        output = part.last(*args, **kwargs)
        return changed(part.end.form, lambda _, x: output if x is HERE else x)

    def _keep(self, key: str, name: str, value: Any, given: Mapping[Place, _Given], weights: list[int]) -> None:
        """Keep what was made of ``given`` and weights, if there is room, and let go of what is inside ``name``."""
        tensors = _tensors(value)
        nbytes, inner = sum(x.nbytes for x in tensors), [key for key in self._kept if key.startswith(f"{name}.")]
        known = all(isinstance(x, (Tensor, *PLAIN)) for _, x in entries(value))
        room = self._room.left + sum(self._kept[key].nbytes for key in inner)
        versions = _versions(tensors)
        if nbytes <= room and known and UNCOUNTED not in (*versions, *weights):
            self._forget(inner)  # nobody asks them any more
            self._room.left -= nbytes
            self._kept[key] = _Kept(value, versions, given, weights, nbytes)

    def _seen(self, args: tuple, kwargs: Mapping[str, Any]) -> dict[Place, _Given]:
        return {place: self._look(x) for place, x in entries((args, kwargs))}

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


def _weights(module: nn.Module, but: nn.Module | None = None) -> list[int]:
    """Return the versions of the parameters and buffers of a module, without those of another one inside."""
    without = set() if but is None else {id(x) for x in (*but.parameters(), *but.buffers())}
    return _versions([x for x in (*module.parameters(), *module.buffers()) if id(x) not in without])


def _tensors(output: Any) -> list[Tensor]:
    return [x for _, x in entries(output) if isinstance(x, Tensor)]


def _versions(tensors: list[Any]) -> list[int]:
    """Return how often each was written into; one made in inference mode does not count it, and is not kept."""
    return [UNCOUNTED if x.is_inference() else x._version for x in tensors]


@functools.lru_cache(maxsize=16)
def _random(size: int, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # a tensor made within it could not be used outside
        generator = torch.Generator().manual_seed(0)
        return torch.randn(size, generator=generator, dtype=torch.float32).to(dtype)
