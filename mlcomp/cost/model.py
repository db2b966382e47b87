"""What a model costs: bytes of its weights and FLOPs of one forward pass, counted layer by layer.

Notation: a multiply-add is 2 FLOPs. A layer with weight (out, inp) that is applied at P positions (rows of a batch,
tokens, pixels of the output) takes 2·P·out·inp; a convolution has inp = channels/groups·kh·kw.
Source: the convention of Frantar, Singh, Alistarh 2022, arXiv:2208.11580, section 6, where a pruned layer counts
density × dense FLOPs.   Syllabus: 2.10
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from mlcomp.context import isolated_run
from mlcomp.formats.storage import stored_nbytes
from mlcomp.layerwise.inputs import first_argument
from mlcomp.layerwise.matrix import Layer, is_layer, weight_rows
from mlcomp.layerwise.running import call_model, hooked
from mlcomp.modes import evaluating


@dataclass(frozen=True)
class LayerCost:
    """One module that owns parameters or buffers.

    Attributes:
        name: as in ``model.named_modules()``; "" for what the model itself owns.
        kind: class name of the module.
        shape: of ``weight``; () where the module has none.
        nonzeros: weights that are not zero.
        positions: how often the weight matrix was applied to a vector: rows, tokens or output pixels, over all calls.
        flops_dense: 2 · positions · weights. 0 for all but linear and convolutional layers: BatchNorm, activations,
            the products inside attention and bias additions are not counted.
        nbytes_dense: weight, as it is in memory.
        nbytes: weight, as packed: at its bits per weight if they are given; else the non-zero values and a bitmask,
            or dense where that is less.
        nbytes_other: bias and everything else the module owns, buffers included (BatchNorm's statistics).
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    nonzeros: int
    positions: int
    flops_dense: int
    nbytes_dense: int
    nbytes: int
    nbytes_other: int

    @property
    def density(self) -> float:
        """Share of the weights that are not zero; 1 where there is no weight."""
        return self.nonzeros / math.prod(self.shape) if self.shape else 1.0

    @property
    def flops(self) -> int:
        """2 · positions · nonzeros: density × dense. Theoretical: what a kernel that skips every zero would need."""
        return 2 * self.positions * self.nonzeros if self.flops_dense else 0


@dataclass(frozen=True)
class ModelCost:
    """One row for each module that owns parameters or buffers, in the order of ``model.named_modules()``."""

    rows: tuple[LayerCost, ...]

    def __getitem__(self, name: str) -> LayerCost:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    @property
    def positions(self) -> dict[str, int]:
        """Name → positions of the linear and convolutional layers."""
        return {row.name: row.positions for row in self.rows if row.flops_dense}

    @property
    def flops_dense(self) -> int:
        """FLOPs of all counted layers without sparsity."""
        return sum(row.flops_dense for row in self.rows)

    @property
    def flops(self) -> int:
        """Theoretical FLOPs of all counted layers, zeros skipped."""
        return sum(row.flops for row in self.rows)

    @property
    def nbytes_dense(self) -> int:
        """Bytes of everything, weights dense."""
        return sum(row.nbytes_dense + row.nbytes_other for row in self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes of everything, weights as packed."""
        return sum(row.nbytes + row.nbytes_other for row in self.rows)

    def __str__(self) -> str:
        lines = [f"{'layer':<32} {'kind':<12} {'MFLOPs':>9} {'density':>8} {'kB':>9}"]
        for row in self.rows:
            size = (row.nbytes + row.nbytes_other) / 1000
            lines.append(f"{row.name:<32} {row.kind:<12} {row.flops / 1e6:>9.3f} {row.density:>8.3f} {size:>9.1f}")
        lines.append(f"{'total':<32} {'':<12} {self.flops / 1e6:>9.3f} {'':>8} {self.nbytes / 1000:>9.1f}")
        return "\n".join(lines)


@isolated_run
def model_cost(model: nn.Module, sample: Any, *, bits: Mapping[str, int | float] | None = None) -> ModelCost:
    """Count the bytes of ``model`` and the FLOPs of its forward pass on ``sample``.

    Args:
        model: run once in eval mode without gradients; not modified.
        sample: one batch as for :func:`mlcomp.layerwise.compress`; with one input in it the FLOPs are those of one.
        bits: name → bits per weight of quantized layers, scales included (``row.bits_per_weight`` of a report).
    Returns:
        A row for each module with parameters or buffers. A tensor that two modules share is counted for the first.
    Raises:
        ValueError: ``bits`` names an unknown layer or is not positive.
    """
    owners = dict(model.named_modules())
    for name, value in (bits or {}).items():
        if name not in owners or not is_layer(owners[name]):
            raise ValueError(f"bits names {name!r}, which is no linear or convolutional layer of the model")
        if not value > 0:
            raise ValueError(f"bits of layer {name!r} must be positive, got {value!r}")
    positions = _count_positions(model, sample)
    rows: list[LayerCost] = []
    seen: set[int] = set()
    for name, module in owners.items():
        own = {k: t for k, t in (*module._parameters.items(), *module._buffers.items()) if t is not None}
        own = {k: t for k, t in own.items() if id(t) not in seen}
        seen.update(id(t) for t in own.values())
        called = positions.get(name, 0)
        if own or called:
            rows.append(_row(name, module, own, called, (bits or {}).get(name)))
    return ModelCost(tuple(rows))


def _row(
    name: str, module: nn.Module, own: Mapping[str, Tensor], positions: int, bits: int | float | None
) -> LayerCost:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):  # none, or a module of that name
        weight = None
    shape = tuple(weight.shape) if weight is not None else ()
    flops = 2 * positions * module.weight.numel() if is_layer(module) else 0
    dense = packed = 0
    if "weight" in own:
        dense = own["weight"].nbytes
        packed = math.ceil(own["weight"].numel() * bits / 8) if bits else stored_nbytes(own["weight"])
    other = sum(t.numel() * t.element_size() for key, t in own.items() if key != "weight")
    nonzeros = int(weight.count_nonzero()) if weight is not None else 0
    return LayerCost(name, type(module).__name__, shape, nonzeros, positions, flops, dense, packed, other)


def _count_positions(model: nn.Module, sample: Any) -> dict[str, int]:
    """Return how many vectors each layer's matrix multiplies: outputs over output channels."""
    found: dict[str, int] = {}

    def hook(name: str) -> Any:
        def after(module: Layer, args: tuple, kwargs: dict, output: Tensor) -> None:
            # A transposed convolution applies its whole weight at each position of its input.
            seen = first_argument(args, kwargs) if isinstance(module, _ConvTransposeNd) else output
            channels = module.in_channels if isinstance(module, _ConvTransposeNd) else len(weight_rows(module))
            found[name] = found.get(name, 0) + seen.numel() // channels

        return after

    layers = [(name, module) for name, module in model.named_modules() if is_layer(module)]
    handles = [module.register_forward_hook(hook(name), with_kwargs=True) for name, module in layers]
    with evaluating(model), hooked(handles):
        call_model(model, sample)
    return found
