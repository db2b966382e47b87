"""Whether a chain of blocks holds on all batches, and whether its blocks return the same when each is run alone.

A chain is found on one batch. All batches then go through the model and must show the same links. That nothing else
passes from block to block is tried on the first batch: the model also runs with another input of its first block, and
each block, alone, must return for both inputs what it returned inside of the model. A block that reads what another
one wrote down would see the other input's.   Syllabus: 2.01
"""

import copy
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mlcomp.fingerprint import hash_values
from mlcomp.layerwise.chains import PLAIN, Arguments, Call, Chain, Source, Tokens, link_of, on_calls
from mlcomp.layerwise.nested import Place, changed, entries, entry_at
from mlcomp.layerwise.remembered import HERE, End, Part, Remembered, Room
from mlcomp.layerwise.running import call_model, hooked

Beside = dict[int, dict[Place, Any]]
Arms = dict[str, Part]  # of one block, by their names in the model


class Follower:
    """Watches passes through a model; ``broken`` once one did not go along the chain.

    Of the first pass it keeps what the first block was given, what came from beside, and a digest of each output; of
    all of them, which children of a block return what their last layer does.
    """

    def __init__(self, model: nn.Module, chain: Chain) -> None:
        self.model, self.chain = model, chain
        self.broken = False
        self.given: Arguments | None = None
        self.beside: Beside = {}
        self.digests: list[str] = []
        self._children = {id(module): name for block in _arms(model, chain) for name, module in block.items()}
        self._layers = {id(module): name for name, module in model.named_modules() if name in chain.inside}
        self._ends: dict[str, End | None] = {}
        self._returned: Counter[str] = Counter()  # how often layers of the child under way did
        self._latest: tuple[str, Any] = "", None  # which one did last, and what
        self._index = {id(block): i for i, block in enumerate(chain.blocks)}
        self._owners: dict[int, set[int]] = {}
        for i, block in enumerate(chain.blocks):
            for module in block.modules():
                self._owners.setdefault(id(module), set()).add(i)
        self._tokens = Tokens()
        self._last: Call | None = None  # the block under way or, where it has ended, the last one
        self._done = 0  # blocks of this pass that have ended
        self._before = 0  # tokens up to this one are of tensors that were there before the first block
        self._first_pass = True

    def hooks(self) -> list[RemovableHandle]:
        """Register what has to be seen on the modules of the model."""
        return on_calls(self.model.modules(), self._enter, self._leave)

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if id(module) in self._children:
            self._returned.clear()
        index, running = self._index.get(id(module)), self._last is not None and self._last.end < 0
        owners = self._owners.get(id(module))
        if owners is not None and index is None:  # a part of a block, called from elsewhere?
            self.broken |= not running or self._done not in owners
        if self._done == 0 and not running and self.chain.beside:
            self._before = max([self._before, *self._tokens.numbers((args, kwargs))])
        if index is None or self.broken:
            return
        self.broken |= running or index != self._done
        if not self.broken:
            self._begin(index, (args, kwargs))

    def _begin(self, index: int, given: Arguments) -> None:
        seen = self._tokens.seen(given)
        if index and self._last is not None:
            places = self.chain.beside.get(index, ())
            made_later = any(seen[p].number > self._before for p in places if p in seen)
            self.broken |= made_later or link_of(self._last, given, seen) != self.chain.links[index - 1]
            if self._first_pass and not self.broken:
                self.beside[index] = {place: entry_at(given, place) for place in places}
        elif self._first_pass:
            self.given = own_copy(given)
        self._last = Call(self.chain.blocks[index], 0, given, seen)

    def _leave(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if id(module) in self._layers:
            self._latest = self._layers[id(module)], output
            self._returned[self._latest[0]] += 1
        if id(module) in self._children:
            self._note_end(self._children[id(module)], output)
        if module is self.model:  # the pass is over, and must have gone through all blocks
            self.broken |= self._done != len(self.chain.blocks)
            self._last, self._done, self._first_pass = None, 0, False
        elif self._done == 0 and self._last is None and self.chain.beside:
            self._before = max([self._before, *self._tokens.numbers(output)])
        if self.broken or self._last is None or module is not self._last.module:
            return
        self._last.finish(output, self._tokens, 1)
        self.broken |= not self._last.unchanged
        self._done += 1
        if self._first_pass:
            self.digests.append(digest(output))

    def _note_end(self, name: str, output: Any) -> None:
        layer, last = self._latest
        form = changed(output, lambda _, x: HERE if isinstance(x, Tensor) and x is last else x)
        rest = [x for _, x in entries(form) if x is not None]
        end = End(layer, form) if rest == [HERE] and self._returned[layer] == 1 else None
        if self._ends.setdefault(name, end) != end:
            self._ends[name] = None
        self._latest = "", None

    def arms(self) -> list[Arms]:
        """Return for each block its children that hold layers to be compressed."""
        modules = dict(self.model.named_modules())

        def part(name: str, module: nn.Module) -> Part:
            end = self._ends.get(name)
            return Part(module, end, None if end is None else modules[end.layer])

        return [{name: part(name, child) for name, child in block.items()} for block in _arms(self.model, self.chain)]


def own_copy(given: Arguments) -> Arguments:
    """Return arguments whose objects may be written into, a cache of keys and values, say: they are copies."""

    def fresh(_: Place, entry: Any) -> Any:
        return entry if isinstance(entry, (Tensor, nn.Module, *PLAIN)) else copy.deepcopy(entry)

    return changed(given, fresh)


def run_block(block: nn.Module, given: Arguments) -> Any:
    """Call a block on arguments that stay as they are."""
    args, kwargs = own_copy(given)
    return block(*args, **kwargs)


def next_given(link: Arguments, given: Arguments, output: Any, beside: dict[Place, Any]) -> Arguments:
    """Return the arguments of the next block, of what this one was given and has returned."""

    def resolve(_: Place, source: Source) -> Any:
        if source.kind == "value":
            return source.value
        if source.kind == "beside":
            return beside[source.place]
        return entry_at(output if source.kind == "output" else given, source.place)

    return changed(link, resolve)


def digest(output: Any) -> str:
    """Return a hash of the tensors in the output of a block."""
    return hash_values([(place, x) for place, x in entries(output) if isinstance(x, Tensor)])


def prove(follower: Follower, batch: Any) -> list[Arms] | None:
    """Return None if a chain that all batches went along cannot be run block by block: see the module.

    Args:
        follower: that saw ``batch`` first, and whose model is as it was then.
    Returns:
        For each block those of its children, by their names in the model, that need not run again on the same input:
        the block returns what it did where such a child only returns what it returned before.
    Cost: a pass over the batch, and about three through the blocks.
    """
    if follower.broken or follower.given is None:
        return None
    try:
        other = _with_other_input(follower, batch)
        arms = follower.arms()
        return arms if other is not None and _same_alone(follower.chain, [follower, other], arms) else None
    except Exception:  # whatever goes wrong here, the model can still be run as a whole
        return None


def _arms(model: nn.Module, chain: Chain) -> list[dict[str, nn.Module]]:
    """Return for each block its children that hold layers to be compressed, by their names in the model."""
    names = {id(module): name for name, module in model.named_modules()}
    found: list[dict[str, nn.Module]] = []
    for i, block in enumerate(chain.blocks):
        inside = [name for name, at in chain.inside.items() if at == i]
        children = {f"{names[id(block)]}.{name}".lstrip("."): child for name, child in block.named_children()}
        found.append({
            name: child
            for name, child in children.items()
            if "forward" not in vars(child) and any(layer.startswith(f"{name}.") for layer in inside)
        })  # fmt: skip
    return found


def _with_other_input(follower: Follower, batch: Any) -> Follower | None:
    """Return a follower of a pass in which the first block's own input is half of what it is."""
    kept = {s.place for _, s in entries(follower.chain.links[0]) if s.kind == "kept"}
    floats = [p for p, x in entries(follower.given) if isinstance(x, Tensor) and x.is_floating_point()]
    halved = {p for p in floats if p not in kept} or set(floats)
    other = Follower(follower.model, follower.chain)

    pairs: list[tuple[Tensor, Tensor]] = []

    def halve(module: nn.Module, args: tuple, kwargs: dict) -> Arguments:
        if module is follower.chain.blocks[0]:
            pairs[:] = [(x, x / 2) for place, x in entries((args, kwargs)) if place in halved]
        return changed((args, kwargs), lambda _, x: next((new for old, new in pairs if old is x), x))

    handles = other.hooks() + on_calls(follower.chain.blocks, halve)
    with hooked(handles):
        call_model(follower.model, batch)
    same = other.digests[:1] == follower.digests[:1]  # then nothing was tried
    return None if other.broken or not halved or same else other


def _same_alone(chain: Chain, passes: Iterable[Follower], arms: list[Arms]) -> bool:
    """Return whether each block, alone, returns what it did; leave of its arms those that it can spare."""
    states = [(f.given, f) for f in passes if f.given is not None]
    for i, block in enumerate(chain.blocks):
        for k, (given, follower) in enumerate(states):
            once = Remembered(Room(sys.maxsize))
            with once.used(arms[i] if k == 0 else {}):
                output = run_block(block, given)
            if digest(output) != follower.digests[i]:
                return False
            for name, arm in list(arms[i].items()) if k == 0 else ():
                if not _spared(once, {name: arm}, block, given, follower.digests[i]):
                    del arms[i][name]
            if i + 1 < len(chain.blocks):
                states[k] = (next_given(chain.links[i], given, output, follower.beside.get(i + 1, {})), follower)
    return True


def _spared(once: Remembered, arm: Arms, block: nn.Module, given: Arguments, expected: str) -> bool:
    """Return whether the block returns the same where this arm only returns what it did, and all else runs."""
    try:
        with once.used(arm):
            return digest(run_block(block, given)) == expected
    except Exception:  # the block misses something that the arm does
        return False
