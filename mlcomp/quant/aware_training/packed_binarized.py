r"""A trained binarized network as bits: XNOR and population count, and a threshold where BatchNorm and sign were.

Notation: z sum of a unit, a whole number; f its BatchNorm. sign(f(z)) is +1 from a threshold on, or up to one where f
falls (γ < 0), or constant (γ = 0). Inputs of the first layer are whole numbers of b bits, $x = \sum_p 2^p x_p$ with
planes $x_p$ of zeros and ones; as signs they are $2x_p - 1$, so $x_p \cdot w = ((2x_p - 1) \cdot w + \sum w)/2$.
Source: Courbariaux et al. 2016, arXiv:1602.02830, algorithm 5 and section 4.   Syllabus: 4.03
"""

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int32, Int64, UInt8
from torch import Tensor, nn

from mlcomp.checks import check_bits, check_codes
from mlcomp.context import isolated, isolated_run
from mlcomp.formats.xnor_matmul import PackedSigns, pack_signs, xnor_matmul
from mlcomp.modes import evaluating
from mlcomp.quant.aware_training.binarized import BinaryLinear, BinarySign


@dataclass(frozen=True)
class Thresholds:
    """What a BatchNorm and the sign after it do to whole numbers.

    Attributes:
        at: (units,) int64; falls: (units,) bool. The sign is +1 where z ≥ at, the other way round where ``falls``.
    """

    at: Int64[Tensor, " units"]
    falls: Bool[Tensor, " units"]

    @isolated
    def signs(self, z: Int32[Tensor, "samples units"]) -> PackedSigns:
        """Return the signs of (samples, units), packed."""
        return pack_signs(((z >= self.at) ^ self.falls).float() - 0.5)

    @property
    def nbytes(self) -> int:
        """Bytes of the thresholds in 32 bits, the direction in one of them."""
        return 4 * len(self.at)


@isolated_run
def fold_thresholds(norm: nn.Module, units: int, largest: int) -> Thresholds:
    """Return for each unit the threshold at which ``norm`` changes its sign, found by asking it.

    Args:
        norm: a BatchNorm of any kind, (samples, units) → the same; run in eval mode, not modified.
        units: how many.
        largest: the sums lie in −largest … largest.
    Returns:
        thresholds that agree with sign(norm(z)), sign(0) = +1, for every whole number z in that range.
    Guarantee: exact, bit for bit: rounding keeps order, so each unit of the norm is monotonic in floating point, too,
        and bisection finds where it changes. The formula μ − β√(v + ε)/γ would be rounded by itself.
    Cost: log₂(2·largest) calls on one row.
    """
    with evaluating(norm):
        device = next((p.device for p in (*norm.parameters(), *norm.buffers())), torch.device("cpu"))

        def positive(z: Tensor) -> Tensor:
            return norm(z.float()[None])[0] >= 0

        low = torch.full((units,), -largest, device=device)
        high = torch.full((units,), largest, device=device)
        falls, end = positive(low), positive(high)
        constant = falls == end
        while bool((high - low > 1).any()):
            middle = (low + high) // 2
            changed = positive(middle) != falls
            low, high = torch.where(changed, low, middle), torch.where(changed, middle, high)
    # Constant units: +1 from the lowest sum on, or falling below it.
    at = torch.where(constant, -largest, high)
    return Thresholds(at.long(), torch.where(constant, ~end, falls))


@dataclass(frozen=True)
class PackedBinarized:
    """A binarized network for inference.

    Attributes:
        weights: the signs of each layer.
        thresholds: after each layer but the last.
        norm: after the last layer, in floating point.
        input_bits: of the inputs.
    """

    weights: tuple[PackedSigns, ...]
    thresholds: tuple[Thresholds, ...]
    norm: nn.Module
    input_bits: int

    @isolated
    def __call__(self, x: UInt8[Tensor, "samples ..."]) -> Float[Tensor, "samples classes"]:
        """Return the logits of inputs whose entries are whole numbers of ``input_bits`` bits."""
        check_codes("x", x, 2**self.input_bits - 1)
        z = self._first(x.flatten(1))
        for weight, thresholds in zip(self.weights[1:], self.thresholds, strict=True):
            z = xnor_matmul(thresholds.signs(z), weight)
        with evaluating(self.norm):
            return self.norm(z.float())

    def _first(self, x: Tensor) -> Tensor:
        """Return the sums of the first layer, plane by plane."""
        weight = self.weights[0]
        total = weight.signs().sum(1).int()
        z = torch.zeros(len(x), len(total), dtype=torch.int32, device=x.device)
        for plane in range(self.input_bits):
            signs = pack_signs(((x >> plane) & 1).float() - 0.5)
            z += ((xnor_matmul(signs, weight) + total) // 2) << plane
        return z

    @property
    def nbytes(self) -> int:
        """Bytes of signs, thresholds and the last norm."""
        tensors: list[Tensor] = [*self.norm.parameters(), *self.norm.buffers()]
        folded = sum(w.nbytes for w in self.weights) + sum(t.nbytes for t in self.thresholds)
        return folded + sum(t.nbytes for t in tensors)


@isolated
def pack_binarized(model: nn.Sequential, *, input_bits: int = 8) -> PackedBinarized:
    """Turn a trained network (linear, norm, sign, …, linear, norm) into bits.

    Args:
        model: of :class:`BinaryLinear`, norms and :class:`BinarySign`, flattening and dropout between; not modified.
        input_bits: the inputs are whole numbers 0 … 2^input_bits − 1, here and in the model's training.
    Raises:
        ValueError: input_bits outside 1..8. TypeError: another module, or another order of them.
    Guarantee: its logits are the model's in eval mode, bit for bit, as long as float32 holds its sums: inputs times
        their largest value below 2²⁴.
    """
    check_bits(input_bits)
    layers = [m for m in model if not isinstance(m, nn.Flatten | nn.Dropout | nn.Identity)]
    linears, norms, signs = layers[0::3], layers[1::3], layers[2::3]
    fits = len(linears) == len(norms) == len(signs) + 1
    fits &= all(isinstance(m, BinaryLinear) for m in linears) and all(isinstance(m, BinarySign) for m in signs)
    if not fits or any(isinstance(m, BinaryLinear | BinarySign) for m in norms):
        kinds = ", ".join(type(m).__name__ for m in layers) or "nothing"
        raise TypeError(f"model must be BinaryLinear, norm, BinarySign, …, BinaryLinear, norm, got {kinds}")
    weights = tuple(pack_signs(linear.weight) for linear in linears if isinstance(linear, BinaryLinear))
    largest = [weights[0].columns * (2**input_bits - 1), *(w.columns for w in weights[1:])]
    found = zip(norms[:-1], weights[:-1], largest[:-1], strict=True)
    thresholds = tuple(fold_thresholds(norm, len(w.packed), most) for norm, w, most in found)
    return PackedBinarized(weights, thresholds, copy.deepcopy(norms[-1]), input_bits)
