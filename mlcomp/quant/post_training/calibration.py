r"""Calibration: the range of an activation, from batches that are seen one by one and not kept.

Notation: x values of one tensor (an activation), [low, high] the range that its grid will span, b bits.
Four rules: the extremes; a moving average of each batch's extremes, $m \leftarrow m + c\,(x - m)$; percentiles; and
the share of the extremes whose b-bit grid has the least mean squared error.
Source: Jacob et al. 2018, arXiv:1712.05877, section 3.1 (moving average); Wu et al. 2020, arXiv:2004.09602
(percentiles); the clip of least squared error is that of :func:`mlcomp.quant.fit_grid`.   Syllabus: 1.08
"""

import math

import torch
from torch import Tensor

from mlcomp.checks import check_bits, check_choice, check_finite, check_interval
from mlcomp.context import isolated
from mlcomp.quant.grid import CLIP_SHARES, Grid, fit_grid

RULES = ("minmax", "moving_average", "percentile", "mse")


@isolated
def observer(rule: str, *, bits: int = 8, momentum: float = 0.1, share: float = 0.9999) -> "MinMax":
    """Return a new observer: ``add(x)`` shows it a batch, ``range()`` returns (low, high) of what it saw.

    Args:
        rule: "minmax", "moving_average", "percentile" or "mse".
        bits: of the grid that "mse" has in mind, 1 to 8.
        momentum: c of "moving_average", in (0, 1]; the first batch starts it.
        share: of the values that "percentile" keeps, in (0.5, 1]; as much is cut off at either end.
    Raises:
        ValueError: unknown rule, or an option outside its interval.
    Guarantee: "minmax" is exact and independent of how the data is cut into batches. "percentile" and "mse" keep
        a histogram with at least 8192 bins over the larger of |low| and |high|: "percentile" is within one bin of
        the sample quantile, inside the extremes.
    Cost: one pass over each batch (two with a histogram); memory independent of the amount of data (2^15 counts).
    """
    check_bits(bits)
    check_interval("momentum", momentum, "(0, 1]")
    check_interval("share of values kept", share, "(0.5, 1]")
    check_choice("rule", rule, RULES)
    if rule == "minmax":
        return MinMax()
    if rule == "moving_average":
        return MovingAverage(momentum)
    if rule == "percentile":
        return Percentile(share)
    return LeastSquares(bits)


@isolated
def activation_grid(low: float, high: float, *, bits: int, symmetric: bool = False) -> Grid:
    """Return the grid of one tensor over [min(low, 0), max(high, 0)], as :func:`mlcomp.quant.fit_grid` makes it."""
    return fit_grid(torch.tensor([[low, high]]), bits=bits, symmetric=symmetric)


class MinMax:
    """The extremes of everything seen."""

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf

    @isolated
    def add(self, x: Tensor) -> None:
        """See one batch, of any shape, on any device; it is not kept."""
        low, high = _extremes(x)
        self.low, self.high = min(self.low, low), max(self.high, high)

    def range(self) -> tuple[float, float]:
        """Return the extremes."""
        if self.low > self.high:
            raise ValueError("no batch was seen, so there is no range")
        return self.low, self.high


class MovingAverage(MinMax):
    """Exponential averages of the batches' extremes: one odd batch moves them little, late batches count most."""

    def __init__(self, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum

    @isolated
    def add(self, x: Tensor) -> None:
        """See one batch."""
        low, high = _extremes(x)
        if self.low > self.high:
            self.low, self.high = low, high
        else:
            self.low += self.momentum * (low - self.low)
            self.high += self.momentum * (high - self.high)


class Histogram(MinMax):
    """Counts over [−R, R] in equal bins. R is a power of two and doubles when a value lies beyond it.

    Doubling merges pairs of bins, so that counts stay exact and no value is ever moved over an edge.
    """

    BINS = 2**15

    def __init__(self) -> None:
        super().__init__()
        self.counts = torch.zeros(self.BINS, dtype=torch.float64)
        self.radius = 0.0

    @isolated
    def add(self, x: Tensor) -> None:
        """See one batch."""
        super().add(x)
        self._grow(max(abs(self.low), abs(self.high)))
        if self.radius == 0:
            self.counts[self.BINS // 2] += x.numel()  # zeros only, so far: they stay in the bin right of the middle
            return
        values = x.detach().reshape(-1)
        values = values if values.dtype == torch.float64 else values.float()
        self.counts += torch.histc(values, self.BINS, -self.radius, self.radius).cpu()

    def _grow(self, extreme: float) -> None:
        if extreme == 0 or extreme <= self.radius:
            return
        if self.radius == 0:
            self.radius = 2.0 ** math.ceil(math.log2(extreme))
        while self.radius < extreme:
            merged = self.counts.reshape(-1, 2).sum(1)
            self.counts.zero_()
            self.counts[self.BINS // 4 : 3 * self.BINS // 4] = merged
            self.radius *= 2

    @property
    def width(self) -> float:
        """Width of a bin [units of x]."""
        return 2 * self.radius / self.BINS

    @property
    def centres(self) -> Tensor:
        """The middle of each bin."""
        return (torch.arange(self.BINS, dtype=torch.float64) + 0.5) * self.width - self.radius


class Percentile(Histogram):
    """The range that keeps a share of the values, with as many cut off below as above."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    @isolated
    def range(self) -> tuple[float, float]:
        """Return the two quantiles, never beyond the extremes."""
        low, high = super().range()
        if self.share == 1 or self.radius == 0:
            return low, high
        tail = (1 - self.share) / 2 * float(self.counts.sum())
        # Outer edges of the first bins, from either end, that reach beyond the tail: nothing inside is cut off.
        below = int((self.counts.cumsum(0) <= tail).sum())
        above = int((self.counts.flip(0).cumsum(0) <= tail).sum())
        return max(low, below * self.width - self.radius), min(high, self.radius - above * self.width)


class LeastSquares(Histogram):
    """The share of the extremes, 1.00 … 0.01, whose grid rounds what was seen with the least squared error."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    @isolated
    def range(self) -> tuple[float, float]:
        """Return the best range; the values of a bin count as its middle."""
        low, high = super().range()
        if self.radius == 0:
            return low, high
        used = self.counts > 0
        centres, counts = self.centres[used], self.counts[used]
        best = (math.inf, 1.0)
        for share in CLIP_SHARES:
            grid = activation_grid(share * low, share * high, bits=self.bits)
            step, zero = grid.step.double(), grid.zero.double()
            codes = (torch.round(centres / step) + zero).clamp(0, 2**self.bits - 1)
            error = float((counts * ((codes - zero) * step - centres).square()).sum())
            best = min(best, (error, share), key=lambda pair: pair[0])
        return best[1] * low, best[1] * high


def _extremes(x: Tensor) -> tuple[float, float]:
    if x.numel() == 0:
        raise ValueError(f"a batch must have at least one value, got shape {tuple(x.shape)}")
    low, high = (float(v) for v in torch.aminmax(x.detach()))  # NaN wins over everything, so both tell of it
    if not (math.isfinite(low) and math.isfinite(high)):
        check_finite("the activation", x)
    return low, high
