r"""Running sums of $2XX^\top$ over calibration batches: one for all layers that read the same tensors.

Notation: X inputs (inp, samples), $H = 2XX^\top$, one for each group of a grouped convolution.
Source: Frantar, Singh, Alistarh 2022, arXiv:2208.11580, section 3.   Syllabus: 2.01
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from mlcomp.checks import all_finite
from mlcomp.context import isolated
from mlcomp.layerwise.chains import Token, Tokens
from mlcomp.layerwise.hessian import PANEL
from mlcomp.layerwise.matrix import Layer, input_matrices, weight_matrix


class HessianSum:
    """Running sum of $2XX^\top$ of one layer, (groups, inp, inp); with ``diagonal`` of its diagonal, (groups, inp).

    Until :meth:`finish` the sum is in the panels of rows from their own square to the right; the rest is not written.
    ``samples`` counts the columns of X: input vectors of a linear layer, patches of a convolution. Each group of a
    grouped convolution has an X of its own, with as many columns as every other; they are counted once, not summed.
    """

    @isolated
    def __init__(self, name: str, module: Layer, dtype: torch.dtype, *, diagonal: bool = False) -> None:
        groups, _, inp = weight_matrix(module).shape
        self.name, self.diagonal = name, diagonal
        self.samples = 0
        shape = (groups, inp) if diagonal else (groups, inp, inp)
        self.hessian = torch.zeros(shape, dtype=dtype, device=module.weight.device)
        self.linear = not isinstance(module, _ConvNd)

    def same(self, other: "HessianSum") -> bool:
        """Return whether both sums come out the same where their layers read the same tensors."""
        mine, theirs = self.hessian, other.hessian
        alike = mine.shape == theirs.shape and mine.device == theirs.device  # a diagonal has a dimension less
        return alike and self.linear and other.linear

    @isolated
    def add(self, module: Layer, x: Tensor, valid: Tensor | None = None) -> None:
        """Add the samples of one call; ``valid``, like the leading dimensions of ``x``, says which vectors count."""
        check_input(self.name, x)
        if valid is not None:
            x = x[valid.to(x.device, torch.bool)]
        for columns in input_matrices(module, x.to(self.hessian.dtype)):
            self.samples += columns.shape[-1]
            if self.diagonal:
                self.hessian += 2 * columns.square().sum(-1)
                continue
            for start, end in self._panels():
                rows = self.hessian[:, start:end, start:]
                rows.baddbmm_(columns[:, start:end], columns[:, start:].mT, alpha=2)

    def finish(self) -> None:
        """Write what is left of the squares."""
        if not self.diagonal:
            for start, end in self._panels():
                self.hessian[:, end:, start:end] = self.hessian[:, start:end, end:].mT

    def _panels(self) -> list[tuple[int, int]]:
        inp = self.hessian.shape[-1]
        return [(start, min(start + PANEL, inp)) for start in range(0, inp, PANEL)]


def check_input(name: str, x: Tensor) -> None:
    """Raise if the input of a layer holds NaN or infinity."""
    if not all_finite(x):
        bad = int((~torch.isfinite(x)).sum())
        raise ValueError(f"layer {name!r}: its input holds {bad} NaN or infinite value(s) of {x.numel()}")


@dataclass
class _Readers:
    """Layers that have read the same tensors, call by call; those ``behind`` have not read the last one yet.

    Attributes:
        token, valid: the last tensor, and which of its vectors count.
        samples: of those who have read it.
        first: whether it was their first.
        before: the sum without it, where there is more than one reader.
    """

    names: set[str]
    token: Token | None = None
    valid: Tensor | None = None
    samples: int = 0
    first: bool = False
    behind: set[str] = field(default_factory=set)
    before: Tensor | None = None

    def are_at(self, token: Token, valid: Tensor | None) -> bool:
        """Return whether this tensor is the last one, with the same vectors counted."""
        if valid is None or self.valid is None:
            return token == self.token and valid is self.valid
        return token == self.token and torch.equal(valid, self.valid)


class SharedSums:
    """Adds the inputs of layers to their sums; linear layers that read the same tensors share one H.

    Which ones do is seen at their first calls. A layer that later reads something else goes its own way, with the H
    that was its own until then.

    Guarantee: every sum is, bit for bit, what :meth:`HessianSum.add` makes of the layer's own calls.
    """

    def __init__(self, layers: Mapping[str, Layer], sums: Mapping[str, HessianSum]) -> None:
        """Take ``sums`` that are empty, and their layers."""
        self.layers, self.sums = layers, sums
        self._tokens = Tokens()
        self._readers: dict[str, _Readers] = {}

    def add(self, name: str, x: Tensor, valid: Tensor | None) -> None:
        """Add the samples of one call; see :meth:`HessianSum.add`."""
        total = self.sums[name]
        if total.diagonal or not total.linear:
            total.add(self.layers[name], x, valid)
            return
        token = self._tokens.of(x)
        if name not in self._readers:
            readers = self._at_their_first_call(name, token, valid)
            if readers is not None:
                self._join(name, readers)
                return
            self._readers[name] = _Readers({name}, first=True)
        readers = self._readers[name]
        if name in readers.behind and readers.are_at(token, valid):
            total.samples = readers.samples
            readers.behind.discard(name)
            return
        self._part({name} if name in readers.behind else readers.behind)
        self._advance(name, x, token, valid)

    def finish(self) -> None:
        """End the sums: a layer that has not read the last tensor of the others parts with them."""
        for readers in list(self._readers.values()):
            self._part(readers.behind)
        for total in {total.hessian.data_ptr(): total for total in self.sums.values()}.values():
            total.finish()

    def _at_their_first_call(self, name: str, token: Token, valid: Tensor | None) -> _Readers | None:
        """Return those who have read this tensor just now, as the first one, and have an H of the same shape."""
        for other, readers in self._readers.items():
            if self.sums[name].same(self.sums[other]) and readers.first and readers.are_at(token, valid):
                return readers
        return None

    def _join(self, name: str, readers: _Readers) -> None:
        self.sums[name].hessian = self.sums[next(iter(readers.names))].hessian
        self.sums[name].samples = readers.samples
        readers.names.add(name)
        self._readers[name] = readers

    def _part(self, names: Iterable[str]) -> None:
        """Give each of these, which are behind others, an H of its own."""
        for name in list(names):
            readers = self._readers[name]
            assert readers.before is not None  # there are others
            self.sums[name].hessian = readers.before.clone()
            readers.names.discard(name)
            readers.behind.discard(name)
            self._readers[name] = _Readers({name})

    def _advance(self, name: str, x: Tensor, token: Token, valid: Tensor | None) -> None:
        readers, total = self._readers[name], self.sums[name]
        if len(readers.names) > 1:
            readers.before = torch.empty_like(total.hessian) if readers.before is None else readers.before
            readers.before.copy_(total.hessian)
        readers.first = readers.first and readers.token is None
        total.add(self.layers[name], x, valid)
        readers.token, readers.valid, readers.samples = token, valid, total.samples
        readers.behind = readers.names - {name}
