"""A model run block by block: the inputs of one block are kept for all batches, and only that block is run.

Memory: the inputs of one block for all batches, in the dtype that the model made, and what one batch needs; on a CPU
also what its finished parts returned, or their last layers are given (``remembered.py``), up to 5 % of the model.
Source: Frantar et al. 2023, GPTQ, arXiv:2210.17323, section 4 (block by block).   Syllabus: 2.01
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

from torch import nn

from mlcomp.layerwise.chains import Arguments, Chain, find_chains, on_calls
from mlcomp.layerwise.follow import Arms, Beside, Follower, next_given, own_copy, prove, run_block
from mlcomp.layerwise.inputs import Run
from mlcomp.layerwise.matrix import Layer
from mlcomp.layerwise.nested import entry_at
from mlcomp.layerwise.remembered import SHARE, Part, Remembered, Room, can_remember
from mlcomp.layerwise.running import StopForward, call_model, hooked
from mlcomp.layerwise.valid import Valid, ValidPositions


@dataclass
class _Kept:
    """One batch on its way: what the block at which it stands is given, and what later ones are from beside."""

    given: Arguments
    beside: Beside
    positions: ValidPositions
    remembered: Remembered


class Walk:
    """A chain of blocks of ``model``, and the kept inputs of the block ``at`` (an index; None: of none).

    ``model`` is in eval mode, and may change on the way. ``arms`` are those of :func:`prove`; ``parts`` are sets of
    batches (None: there is none).
    """

    def __init__(
        self, model: nn.Module, chain: Chain, arms: list[Arms], parts: Sequence[Iterable | None], valid: Valid
    ) -> None:
        self.model, self.chain, self.arms, self.parts, self.valid = model, chain, arms, parts, valid
        self.at: int | None = None
        self._kept: list[list[_Kept]] = []
        # Of the block at which the walk stands: layers and whole arms, and arms of which only the last layer is not.
        self._finished: Arms = {}
        self._ending: Arms = {}

    def block_of(self, names: Iterable[str]) -> int | None:
        """Return the block that all these layers are in, if there is one."""
        found = {self.chain.inside.get(name) for name in names}
        return found.pop() if len(found) == 1 else None

    def reach(self, index: int) -> None:
        """Bring all batches to block ``index``, through the blocks before it as they are now."""
        if self.at == index:
            return
        if self.at is None or self.at > index:
            self._start()
        while self.at is not None and self.at < index:
            for part in range(len(self.parts)):
                for run, _ in self.runs(part, onward=True):
                    run()
            self.at += 1
            self._finished, self._ending = {}, {}

    def runs(self, part: int, *, onward: bool = False) -> Iterator[Run]:
        """Yield what runs the block on each batch of a part; ``onward`` has its output become the next one's input.

        After all parts have gone onward, :meth:`moved` says so.
        """
        for kept in self._kept[part]:
            kept.positions.begin()
            yield partial(self._run, kept, onward), kept.positions

    def moved(self) -> None:
        """Note that all batches have gone on to the next block, if there is one."""
        self.at = None if self.at is None or self.at + 1 == len(self.chain.blocks) else self.at + 1
        if self.at is None:
            self._kept = []

    def finished(self, layers: Mapping[str, Layer]) -> None:
        """Note that these layers have changed, and will not change again.

        Inputs that are no longer those of the model are let go; what is finished in the block at hand is remembered.
        """
        if self.at is None:
            return
        if any(self.chain.inside.get(name, -1) < self.at for name in layers):
            self.at, self._kept, self._finished, self._ending = None, [], {}, {}
        else:
            here = {name: layer for name, layer in layers.items() if self.chain.inside[name] == self.at}
            self._finished |= {name: Part(layer) for name, layer in here.items() if can_remember(layer)}
            for name, arm in self.arms[self.at].items():
                inside = {layer for layer in self.chain.inside if layer.startswith(f"{name}.")}
                left = inside - self._finished.keys()
                if not left:
                    self._finished[name] = arm
                    self._ending.pop(name, None)
                elif arm.end is not None and left == {arm.end.layer}:
                    self._ending[name] = arm

    def _run(self, kept: _Kept, onward: bool) -> None:
        assert self.at is not None
        after = self.at + 1
        with kept.remembered.used(self._finished, self._ending):
            output = run_block(self.chain.blocks[self.at], kept.given)
        if onward:
            kept.remembered.clear()
        if onward and after < len(self.chain.blocks):
            kept.given = next_given(self.chain.links[after - 1], kept.given, output, kept.beside.get(after, {}))

    def _start(self) -> None:
        """Run the model on all batches as far as needed, and keep what the first block is given."""
        self._room = Room(int(SHARE * sum(p.nbytes for p in self.model.parameters())))
        self._kept = [list(self._caught(batches)) for batches in self.parts]
        self.at = 0

    def _caught(self, batches: Iterable | None) -> Iterator[_Kept]:
        first, beside = self.chain.blocks[0], self.chain.beside
        places = {id(self.chain.blocks[i]): (i, found) for i, found in beside.items()}
        last = self.chain.blocks[max(beside, default=0)]
        found: list[_Kept] = []

        def see(module: nn.Module, args: tuple, kwargs: dict) -> None:
            if module is first:
                found.append(_Kept(own_copy((args, kwargs)), {}, positions, Remembered(self._room)))
            else:
                index, wanted = places[id(module)]
                found[-1].beside[index] = {place: entry_at((args, kwargs), place) for place in wanted}
            if module is last:
                raise StopForward

        watched = [first, *(self.chain.blocks[i] for i in beside)]
        for batch in batches if batches is not None else ():
            positions = ValidPositions(batch, self.valid)
            with hooked(on_calls(watched, see)), suppress(StopForward):
                call_model(self.model, batch)
            yield found.pop()


@contextmanager
def walks(
    model: nn.Module,
    parts: Sequence[Iterable | None],
    layers: Mapping[str, Layer],
    names: Iterable[str],
    valid: Valid,
) -> Iterator[Callable[[], list[Walk]]]:
    """Find the chains of ``model``, and follow them while the caller runs it on all batches.

    Yields a function that then returns a :class:`Walk` for each chain that held. ``model`` is in eval mode already.
    """
    first = None if parts[0] is None else next(iter(parts[0]), None)
    followers: list[Follower] = []
    if first is not None:
        with suppress(Exception):  # a model that cannot be run on it says so to the caller
            followers = [Follower(model, chain) for chain in find_chains(model, first, layers, names)]

    def proven() -> list[Walk]:
        found = [(f.chain, prove(f, first)) for f in followers]
        return [Walk(model, chain, arms, parts, valid) for chain, arms in found if arms is not None]

    with hooked([handle for follower in followers for handle in follower.hooks()]):
        yield proven
