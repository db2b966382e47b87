r"""GOBO: the Gaussian body of a weight matrix in a few levels, the outliers in its tails as they are.

Notation: W weight with mean μ and standard deviation σ of all its entries. w is an outlier where the log density of
the fitted Gaussian is low, $\ln N(w; \mu, \sigma) = -\tfrac12 z^2 - \ln\sigma - \tfrac12 \ln 2\pi < -4$ with
$z = (w-\mu)/\sigma$; a density has the unit 1/weight, so the
same z is an outlier in one matrix and none in another. The rest is the body.
Source: Zadeh et al. 2020, arXiv:2005.03842, section IV.   Syllabus: 4.04
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from mlcomp.checks import check_bits, check_interval, check_weight, check_whole, narrowed
from mlcomp.context import isolated
from mlcomp.formats.packing import pack_planes, packed_nbytes, unpack_planes
from mlcomp.formats.stored import Stored
from mlcomp.quant.scalar.codebook import nearest


@dataclass(frozen=True)
class Gobo:
    """A weight as codes into one table, and outliers.

    Attributes:
        codes: (out, inp) uint8; 0 where an outlier is.
        levels: (2^bits,) ascending, in the dtype of the weight (float32, or float64).
        positions: (outliers,) int64, places in the flattened weight, ascending. values: (outliers,) those entries.
        iterations: updates of the levels that lowered the error.
    """

    codes: UInt8[Tensor, "out inp"]
    levels: Float[Tensor, " levels"]
    positions: Int64[Tensor, " outliers"]
    values: Float[Tensor, " outliers"]
    iterations: int

    @isolated
    def dequantize(self) -> Float[Tensor, "out inp"]:
        """Return the weight: a level for each code, and the outliers."""
        return self.levels[self.codes.long()].flatten().index_copy(0, self.positions, self.values).view_as(self.codes)

    @property
    def nbytes(self) -> int:
        """Bytes as packed: a code for each weight, the table, and value and position of each outlier."""
        count, size = self.codes.numel(), self.levels.element_size()
        places = packed_nbytes(len(self.positions), (count - 1).bit_length())
        codes = packed_nbytes(count, (len(self.levels) - 1).bit_length())
        return codes + (len(self.levels) + len(self.values)) * size + places

    @property
    def bits_per_weight(self) -> float:
        """``nbytes`` in bits over the number of weights."""
        return self.nbytes * 8 / self.codes.numel()

    def stored(self) -> Stored:
        """Return codes, the table, and the outliers with their places."""
        tensors = {"codes": pack_planes(self.codes, (len(self.levels) - 1).bit_length()), "levels": self.levels}
        tensors |= {"positions": pack_planes(self.positions, (self.codes.numel() - 1).bit_length())}
        facts = {"shape": list(self.codes.shape), "outliers": len(self.values), "iterations": self.iterations}
        return Stored("gobo", tensors | {"values": self.values.contiguous()}, facts)

    @classmethod
    def from_stored(cls, stored: Stored) -> "Gobo":
        """Return what was stored."""
        tensors, facts, (out, inp) = stored.tensors, stored.facts, stored.shape
        codes = unpack_planes(tensors["codes"], (len(tensors["levels"]) - 1).bit_length(), (out, inp))
        places = unpack_planes(tensors["positions"], (out * inp - 1).bit_length(), (facts["outliers"],))
        return cls(codes, tensors["levels"], places.long(), tensors["values"], facts["iterations"])


@isolated
def gobo_outliers(weight: Float[Tensor, "out inp"], *, log_density: float | int = -4.0) -> Bool[Tensor, "out inp"]:
    """Return True where the log density of the Gaussian that fits the matrix is below ``log_density``.

    Args:
        weight: (out, inp), any float dtype, computed in float64; not modified.
        log_density: [ln of 1/weight units]. The source's −4 means |z| > 3.55 at σ = 0.04 and |z| > 2.48 at σ = 1.
    Raises:
        ValueError: NaN or inf in weight or log_density.
    Guarantee: a matrix of equal entries has no outlier. Where σ > exp(−log_density)/√(2π), 21.8 for −4, all are.
    """
    w = check_weight(weight).double()
    check_interval("log_density", log_density, "(-inf, inf)")
    spread = float(w.std(correction=0))
    if spread == 0:
        return torch.zeros_like(w, dtype=torch.bool)
    z = (w - w.mean()) / spread
    return -z.square() / 2 - math.log(spread) - math.log(2 * math.pi) / 2 < log_density


@isolated
def gobo(
    weight: Float[Tensor, "out inp"], *, bits: int = 3, log_density: float | int = -4.0, max_steps: int = 1000
) -> Gobo:
    """Quantize the body of a matrix to 2^bits levels, and keep the outliers.

    The levels begin as means of bins with equally many weights. Then each weight takes its nearest level and each
    level the mean of its weights, until the sum of absolute errors of the body stops falling.

    Args:
        weight: (out, inp), any float dtype, computed in float64; not modified.
        bits: of a code, 1 to 8; the source has 3, or 4 for sensitive layers.
        log_density: see :func:`gobo_outliers`.
        max_steps: updates of the levels at the most; 0 leaves the means of the bins.
    Raises:
        ValueError: bits outside 1..8, NaN or inf in weight, no body: every weight is an outlier.
    Guarantee: outliers come back exactly. Each weight of the body gets its nearest level, and the sum of absolute
        errors is no larger than with the first levels.
    Cost: one sort; an iteration is 2^bits binary searches in running sums.
    """
    check_bits(bits)
    check_whole("max_steps", max_steps, 0)
    w = check_weight(weight)
    w = w if w.dtype == torch.float64 else w.float()
    outlying = gobo_outliers(w, log_density=log_density)
    body = w[~outlying].double().sort().values
    if not len(body):
        spread = float(w.double().std(correction=0))
        raise ValueError(
            f"weight must have a body, but at a standard deviation of {spread:.3g} every log density is "
            f"below {log_density}: the criterion has units; divide the weight by a constant"
        )
    levels, iterations = _descend(body, 2**bits, max_steps)
    codes = torch.bucketize(w.double(), nearest(levels)).to(torch.uint8).masked_fill(outlying, 0)
    positions = outlying.flatten().nonzero()[:, 0]
    return Gobo(codes, narrowed(levels, w.dtype), positions, w.flatten()[positions], iterations)


def _descend(body: Tensor, count: int, max_steps: int) -> tuple[Tensor, int]:
    """Return the levels at which the sum of absolute errors stops falling, and the number of updates."""
    zero = body.new_zeros(1)
    away = body - body.mean()  # running sums of these lose no digits
    sums = torch.cat([zero, away.cumsum(0)])
    ends = torch.arange(count + 1, device=body.device) * len(body) // count
    levels = _means(sums, ends, away[-1].expand(count))
    error = _absolute_error(away, sums, levels)
    for iteration in range(max_steps):
        cuts = torch.searchsorted(away, nearest(levels), right=True)
        ends = torch.cat([ends[:1], cuts, ends[-1:]])
        moved = _means(sums, ends, levels)
        after = _absolute_error(away, sums, moved)
        if after >= error:
            return levels + body.mean(), iteration
        levels, error = moved, after
    return levels + body.mean(), max_steps


def _means(sums: Tensor, ends: Tensor, empty: Tensor) -> Tensor:
    """Return the mean of each bin of the sorted body, ascending; ``empty`` where a bin has no weight."""
    size = ends.diff()
    return torch.where(size > 0, sums[ends].diff() / size.clamp(min=1), empty).sort().values


def _absolute_error(away: Tensor, sums: Tensor, levels: Tensor) -> float:
    """Return the sum of absolute errors if each weight takes its nearest level."""
    last = torch.full((1,), len(away), device=away.device)
    ends = torch.cat([last - last, torch.searchsorted(away, nearest(levels), right=True), last])
    middle = torch.searchsorted(away, levels).clamp(ends[:-1], ends[1:])
    below = levels * (middle - ends[:-1]) - (sums[middle] - sums[ends[:-1]])
    above = sums[ends[1:]] - sums[middle] - levels * (ends[1:] - middle)
    return float((below + above).sum())
