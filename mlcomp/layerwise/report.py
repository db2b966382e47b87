"""The report of a layer-wise compression: what happened to each layer, with its error and its size.

Syllabus: 2.01
"""

import html
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mlcomp.context import isolated
from mlcomp.extras import need
from mlcomp.formats.stored import Stored
from mlcomp.layerwise.attention import is_attention
from mlcomp.layerwise.hessian import output_loss
from mlcomp.layerwise.matrix import Layer, is_layer
from mlcomp.layerwise.report_picture import picture_of, svg_of
from mlcomp.layerwise.report_tables import (
    csv_text,
    html_table,
    json_text,
    layer_dicts,
    page,
    read_json,
    worst_layers,
    write,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class LayerRow:
    """What happened to one layer.

    Attributes:
        name: as in ``model.named_modules()``.
        shape: of the weight.
        status: "compressed", or "skipped: " and the reason.
        error: ‖(W − Ŵ)X‖²/‖WX‖² on the calibration inputs that the method saw (0 if skipped; 0/0 is 0, else inf);
            None where the method needs no H and ``errors=True`` was not asked for.
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
    error: float | None
    held_out_error: float | None
    samples: int
    nbytes_before: int
    nbytes_after: int
    sparsity: float
    seconds: float

    @property
    def bits_per_weight(self) -> float:
        """Size after, in bits for each weight of the layer."""
        return 8 * self.nbytes_after / max(1, math.prod(self.shape))


@dataclass(frozen=True)
class LeftOut:
    """A parameter of two or more dimensions that no row is about.

    Attributes:
        name: as in ``model.named_parameters()``. shape: its shape. nbytes: dense, before and after.
        reason: why it was not compressed.
    """

    name: str
    shape: tuple[int, ...]
    nbytes: int
    reason: str


@dataclass(frozen=True)
class CompressionReport:
    """One row for each layer, in the order of ``model.named_modules()``, and what has no row.

    Attributes:
        rows: the linear and convolutional layers, and experts.
        left: all other parameters of two or more dimensions, with the reason.
        parameters: of the whole model, a shared one counted once.
        results: layer → what its method returned, packed, one for each group of a convolution; layers whose method
            returned a plain weight have none. :func:`mlcomp.layerwise.save` writes them.
    """

    rows: tuple[LayerRow, ...]
    left: tuple[LeftOut, ...] = ()
    parameters: int = 0
    results: Mapping[str, tuple[Stored, ...]] = field(default_factory=dict, compare=False, repr=False)

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
    def compressed_weights(self) -> int:
        """How many weights were compressed."""
        return sum(math.prod(row.shape) for row in self.rows if row.status == "compressed")

    @property
    def covered(self) -> float:
        """Share of all the model's parameters that was compressed."""
        return self.compressed_weights / max(1, self.parameters)

    @property
    def nbytes_before(self) -> int:
        """Bytes of all listed weights before."""
        return sum(row.nbytes_before for row in self.rows)

    @property
    def nbytes_after(self) -> int:
        """Bytes of all listed weights after."""
        return sum(row.nbytes_after for row in self.rows)

    @property
    def summary(self) -> str:
        """The share that was compressed, in one line."""
        share = f"{self.covered:.1%} of {self.parameters:,} weights".replace(",", " ")
        return f"compressed {share}; {self.nbytes_before} → {self.nbytes_after} bytes in the layers listed"

    def __str__(self) -> str:
        head = f"{'layer':<32} {'error':>9} {'held out':>9} {'sparsity':>8} {'bits/w':>7} {'seconds':>8}  status"
        lines = [self.summary, head]
        for r in self.rows:
            error, held_out = ("" if e is None else f"{e:.5f}" for e in (r.error, r.held_out_error))
            numbers = f"{error:>9} {held_out:>9} {r.sparsity:>8.3f} {r.bits_per_weight:>7.3f} {r.seconds:>8.2f}"
            lines.append(f"{r.name:<32} {numbers}  {r.status}")
        lines += [f"{left.name:<32} {tuple(left.shape)} left as it is: {left.reason}" for left in self.left]
        lines.append(f"{self.nbytes_before} → {self.nbytes_after} bytes; {len(self.skipped)} layer(s) skipped")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Short, for a notebook: the share covered, the layers with the largest errors, and what was left."""
        worst = worst_layers(self.rows)
        cells = [(r.name, f"{error:.5f}", f"{r.bits_per_weight:.3f}", f"{r.sparsity:.3f}") for error, r in worst]
        left = [(r.name, r.status.removeprefix("skipped: ")) for r in self.skipped]
        left += [(x.name, x.reason) for x in self.left]
        parts = [f"<p>{html.escape(self.summary)}</p>"]
        if cells:
            parts.append(html_table(("largest errors", "error", "bits/w", "sparsity"), cells))
        if left:
            more = f"<p>and {len(left) - 5} more</p>" if len(left) > 5 else ""
            parts.append(html_table(("left as it is", "reason"), left[:5]) + more)
        return "\n".join(parts)

    def to_frame(self) -> Any:
        """Return a pandas DataFrame with a row for each layer; needs the extra "tables"."""
        pandas = need("pandas", "tables")
        return pandas.DataFrame(layer_dicts(self.rows))

    def to_csv(self, path: str | os.PathLike) -> None:
        """Write the columns of :meth:`to_frame` as comma-separated values, one line for each layer."""
        write(path, csv_text(self.rows))

    def to_json(self, path: str | os.PathLike) -> None:
        """Write everything as JSON, for :meth:`from_json`."""
        write(path, json_text(self))

    @classmethod
    def from_json(cls, path: str | os.PathLike) -> "CompressionReport":
        """Read what :meth:`to_json` wrote: an equal report.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file holds no report; the message names it.
        """
        return cls(**read_json(path, LayerRow, LeftOut))

    def to_html(self, path: str | os.PathLike) -> None:
        """Write a page with the picture and all layers, which needs no other file and no network."""
        write(path, page(self, svg_of(self)))

    def picture(self) -> "Figure":
        """Return a matplotlib figure: each layer's output error and size, in the order of the model.

        The error is the held-out one where it was measured, on a logarithmic axis; the size is that of the weight
        before and after. Layers of one kind (the last word of the name, as q_proj) have a colour and a mark.
        """
        return picture_of(self)


@isolated
def output_error(weight: Tensor, compressed: Tensor, hessian: Tensor) -> float:
    """Return ‖(W − Ŵ)X‖²/‖WX‖² over all groups (groups, out, inp); 0/0 is 0, more over 0 is inf.

    In the wider dtype of W and H: of an H that was summed in float32, products in float64 would say no more.
    """
    dtype = torch.promote_types(torch.promote_types(weight.dtype, hessian.dtype), torch.float32)
    w, h = weight.to(dtype), hessian.to(dtype)
    loss, reference = (float(output_loss(x, h).sum(dtype=torch.float64)) for x in (compressed.to(dtype) - w, w))
    if reference <= 0:
        return 0.0 if loss <= 0 else math.inf
    return max(0.0, loss / reference)  # rounding may take a zero loss below zero


def skipped_row(name: str, module: Layer, reason: str) -> LayerRow:
    """Return the row of a layer that stays as it is."""
    weight = module.weight.detach()
    nbytes = weight.numel() * weight.element_size()
    known = not weight.is_meta and weight.layout == torch.strided and weight.numel()
    # A sum of truth values would take 8 bytes for each, and an output head can be the largest weight of all.
    zeros = int((weight == 0).count_nonzero()) if known else 0  # of float8 itself torch counts nothing
    sparsity = zeros / max(weight.numel(), 1)
    return LayerRow(name, tuple(weight.shape), f"skipped: {reason}", 0.0, None, 0, nbytes, nbytes, sparsity, 0.0)


def left_out(model: nn.Module, listed: set[int]) -> tuple[LeftOut, ...]:
    """Return a line for each parameter of two or more dimensions whose ``id`` is not among ``listed``."""
    lines = []
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or id(parameter) in listed:
            continue
        owner = model.get_submodule(name.rpartition(".")[0])
        lines.append(LeftOut(name, tuple(parameter.shape), parameter.nbytes, _reason(owner, parameter)))
    return tuple(lines)


def _reason(owner: nn.Module, parameter: Tensor) -> str:
    kind = type(owner).__name__
    if isinstance(owner, nn.Embedding | nn.EmbeddingBag):
        return "an embedding: its rows are looked up, so no inputs weigh them"
    if isinstance(owner, nn.RNNBase | nn.RNNCellBase):
        return f"{kind} multiplies by it inside, without a layer that is called"
    if is_layer(owner) or is_attention(owner):
        return "part of a layer that is not compressed"
    if parameter.ndim == 3:
        return f"{kind} holds a tensor of three dimensions, and no expert's product with it was seen"
    return f"{kind} is no linear or convolutional layer"
