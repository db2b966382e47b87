"""The report of a layer-wise compression: what happened to each layer, with its error and its size.

Syllabus: 2.01
"""

import math
from dataclasses import dataclass

from torch import Tensor

from mlcomp.context import isolated
from mlcomp.layerwise.hessian import output_loss
from mlcomp.layerwise.matrix import Layer


@dataclass(frozen=True)
class LayerRow:
    """What happened to one layer.

    Attributes:
        name: as in ``model.named_modules()``.
        shape: of the weight.
        status: "compressed", or "skipped: " and the reason.
        error: ‖(W − Ŵ)X‖²/‖WX‖² on the calibration inputs that the method saw (0 if skipped; 0/0 is 0, else inf).
        held_out_error: the same on the held-out batches; None without them.
        samples: columns of X, those of one group where a convolution has several (all have the same number).
        nbytes_before: dense, in the model's dtype.
        nbytes_after: a Quantized result's own size; else the non-zero values and a bitmask, or dense if smaller.
        sparsity: share of zeros.
        seconds: of the method alone.
    """

    name: str
    shape: tuple[int, ...]
    status: str
    error: float
    held_out_error: float | None
    samples: int
    nbytes_before: int
    nbytes_after: int
    sparsity: float
    seconds: float

    @property
    def bits_per_weight(self) -> float:
        """``nbytes_after`` in bits over the number of weights."""
        return 8 * self.nbytes_after / math.prod(self.shape)


@dataclass(frozen=True)
class CompressionReport:
    """One row for each linear and convolutional layer of the model, in the order of ``model.named_modules()``."""

    rows: tuple[LayerRow, ...]

    def __getitem__(self, name: str) -> LayerRow:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    @property
    def skipped(self) -> tuple[LayerRow, ...]:
        """The rows of layers that were left as they are."""
        return tuple(row for row in self.rows if row.status != "compressed")

    @property
    def nbytes_before(self) -> int:
        """Bytes of all listed weights before."""
        return sum(row.nbytes_before for row in self.rows)

    @property
    def nbytes_after(self) -> int:
        """Bytes of all listed weights after."""
        return sum(row.nbytes_after for row in self.rows)

    def __str__(self) -> str:
        head = f"{'layer':<32} {'error':>9} {'held out':>9} {'sparsity':>8} {'bits/w':>7} {'seconds':>8}  status"
        lines = [head]
        for r in self.rows:
            held_out = "" if r.held_out_error is None else f"{r.held_out_error:.5f}"
            numbers = f"{r.error:>9.5f} {held_out:>9} {r.sparsity:>8.3f} {r.bits_per_weight:>7.3f} {r.seconds:>8.2f}"
            lines.append(f"{r.name:<32} {numbers}  {r.status}")
        lines.append(f"{self.nbytes_before} → {self.nbytes_after} bytes; {len(self.skipped)} layer(s) skipped")
        return "\n".join(lines)


@isolated
def output_error(weight: Tensor, compressed: Tensor, hessian: Tensor) -> float:
    """Return ‖(W − Ŵ)X‖²/‖WX‖² over all groups (groups, out, inp), in float64; 0/0 is 0, more over 0 is inf."""
    w, h = weight.double(), hessian.double()
    delta = compressed.double() - w
    loss, reference = float(output_loss(delta, h).sum()), float(output_loss(w, h).sum())
    if reference <= 0:
        return 0.0 if loss <= 0 else math.inf
    return max(0.0, loss / reference)  # rounding may take a zero loss below zero


def skipped_row(name: str, module: Layer, reason: str) -> LayerRow:
    """Return the row of a layer that stays as it is."""
    weight = module.weight.detach()
    nbytes = weight.numel() * weight.element_size()
    sparsity = float((weight == 0).double().mean())
    return LayerRow(name, tuple(weight.shape), f"skipped: {reason}", 0.0, None, 0, nbytes, nbytes, sparsity, 0.0)
