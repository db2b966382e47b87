r"""The affine grid that every uniform quantizer of the course rounds to.

Notation: W weight, s step [weight units], z zero code, b bits, q code.
$q = \mathrm{clip}(\mathrm{round}(w/s) + z,\ 0,\ 2^b-1)$ and $\hat w = s\,(q - z)$.
With $z = 2^{b-1}$ this is the symmetric quantizer with signed codes $q - z$ from $-2^{b-1}$ to $2^{b-1}-1$.
Source: Jacob et al. 2018, arXiv:1712.05877, eq. (1).   Syllabus: 1.02, 1.03
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from mlcomp.checks import check_bits, check_choice, check_finite, check_floating, check_group_size, check_weight
from mlcomp.context import isolated
from mlcomp.quant.quantized import Quantized

# How a grid may be fitted.
CLIPS = ("minmax", "mse")
# Shares of the full range that the MSE-optimal clip tries: 1.00, 0.99, …, 0.01. For a whole tensor whose largest
# weight is forty times its root mean square, as in MiniLM, the best share in three bits is 0.07, 5.8 dB better
# than 0.20.
CLIP_SHARES = tuple(1 - i / 100 for i in range(100))
# Weights whose shares are tried together, so that they stay in the cache.
CACHED = 2**17
# How many shares are tried before it is looked whether a smaller one can win, and how far above the best error the
# clipped part must be: more than rounding in float32 makes of the same sum.
CHECKED, CERTAIN = 10, 1 + 1e-3
# What a step may be stored in, and the integers of the same width: positive floats have the order of their patterns.
SCALE_DTYPES = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}


@dataclass(frozen=True)
class Grid:
    """One affine grid for each row, or for each row and group of consecutive columns, of a matrix.

    Everything is computed in the dtype of ``step``. A symmetric grid has the fixed zero code $2^{b-1}$, which
    therefore costs nothing to store.

    Attributes:
        step: (rows, groups) [weight units], float32 (float64 for float64 weights); rows is 1 for one grid per tensor.
        zero: (rows, groups), the code of the value 0: whole numbers.
        bits: bits per code.
        symmetric: the zero code is not stored.
        scale_dtype: dtype that the steps are stored in, and numbers of it already; None: as they are.
    """

    step: Float[Tensor, "rows groups"]
    zero: Float[Tensor, "rows groups"]
    bits: int
    symmetric: bool
    scale_dtype: torch.dtype | None = None

    @isolated
    def encode(self, weight: Float[Tensor, "out n"]) -> UInt8[Tensor, "out n"]:
        """Return the nearest codes, 0 … 2^b − 1 (ties to even, as torch.round)."""
        return self._spread(weight)._codes(weight).to(torch.uint8)

    @isolated
    def decode(self, codes: UInt8[Tensor, "out n"]) -> Float[Tensor, "out n"]:
        """Return the values of the codes, [weight units]."""
        grid = self._spread(codes)
        return (codes.to(grid.step.dtype) - grid.zero) * grid.step

    @isolated
    def round(self, weight: Float[Tensor, "out n"]) -> Float[Tensor, "out n"]:
        """Return the nearest grid values: decode(encode(weight))."""
        grid = self._spread(weight)
        return (grid._codes(weight) - grid.zero) * grid.step

    @isolated
    def quantized(self, codes: UInt8[Tensor, "out n"], group: Int[Tensor, " n"] | None = None) -> Quantized:
        """Return the codes as a :class:`Quantized` on these grids, the steps in the dtype they are stored in.

        Args:
            codes: (out, n); kept, not copied.
            group: (n,), the group of each column where groups are not consecutive equal runs.
        """
        step = self.step.to(self.scale_dtype or self.step.dtype)  # exact: fit_grid rounds to numbers of this dtype
        return Quantized(codes, step, self.zero, self.bits, self.symmetric, group)

    @isolated
    def spread(self, n: int) -> "Grid":
        """Return the same grids with a step and a zero code for each of ``n`` columns: both (rows, n)."""
        width = n // self.step.shape[1]
        step, zero = (part.repeat_interleave(width, dim=1) for part in (self.step, self.zero))
        return replace(self, step=step, zero=zero)

    def groups(self) -> "list[Grid]":
        """Return the grids of each group of columns on their own, (rows, 1)."""
        parts = zip(self.step.split(1, dim=1), self.zero.split(1, dim=1), strict=True)
        return [replace(self, step=step, zero=zero) for step, zero in parts]

    def nearest(self, column: Float[Tensor, " out"]) -> tuple[Float[Tensor, " out"], Float[Tensor, " out"]]:
        """Return the nearest codes of one column, as floats, and their values; the grids must be of one group."""
        step, low, high = self._of_one_group
        signed = torch.div(column.to(step.dtype), step).round_().clamp_(low, high)
        return signed - low, signed.mul_(step)

    @cached_property
    def _of_one_group(self) -> tuple[Tensor, Tensor, Tensor]:
        """The step, the least and the largest signed code of each row: a sweep asks for them at every column."""
        zero = self.zero[:, 0]
        return self.step[:, 0].contiguous(), -zero, 2**self.bits - 1 - zero

    def _spread(self, like: Tensor) -> "Grid":
        """Return the grid of each column of a matrix; one group broadcasts as it is."""
        return self if self.step.shape[1] == 1 else self.spread(like.shape[1])

    def _codes(self, weight: Tensor) -> Tensor:
        """Return the nearest codes as floats; the grids must broadcast to the weight."""
        codes = torch.div(weight.to(self.step.dtype), self.step)
        return codes.round_().add_(self.zero).clamp_(0, 2**self.bits - 1)


@isolated
def fit_grid(
    weight: Float[Tensor, "out inp"],
    *,
    bits: int,
    group_size: int | None = None,
    symmetric: bool = False,
    clip: str = "minmax",
    scale_dtype: torch.dtype | None = None,
) -> Grid:
    r"""Fit one grid to each row, or to each group of consecutive columns of a row.

    Asymmetric: the range is [min(w, 0), max(w, 0)]; zero is always on the grid. Symmetric: the range is
    [−max|w|, max|w|] and the zero code is $2^{b-1}$. The step is range / (2^b − 1). A group of zeros gets step 1,
    so it decodes to exact zeros; so does a group whose step would underflow (range below 1e-44 in float32). A group
    of one repeated value is exact up to rounding on an asymmetric grid. With one bit the symmetric grid is
    {−2·max|w|, 0}: lawful, but hardly useful.

    Args:
        weight: (out, inp), computed in float32 (float64 for float64 weights); not modified.
        bits: bits per code, 1 to 8.
        group_size: columns that share a step; must divide ``inp``. None: the whole row.
        symmetric: fixed zero code instead of a stored one.
        clip: "minmax" keeps the whole range; "mse" shrinks it to the share (1.00, 0.99, …, 0.01) with the least
            squared error, group by group; both ends shrink alike.
        scale_dtype: dtype that the steps will be stored in: float32, float16 or bfloat16. A step is rounded up to
            a number of it before anything is encoded, so the error includes what the narrow step costs; the grid
            holds it in float32 all the same. None: as computed.
    Returns:
        step and zero (out, groups).
    Raises:
        ValueError: bits outside 1..8, group_size does not divide inp, unknown clip or scale_dtype, a step too large
            for scale_dtype.
    Guarantee: with "minmax" every |w − ŵ| ≤ step/2, up to float rounding. With "mse" no group has a larger squared
        error than with "minmax", since the whole range is among the candidates.
    Cost: "mse" makes up to 100 passes over the matrix, a part of it at a time; about 40 in 4 bits, groups of 64.
    """
    weight = check_weight(weight)
    check_bits(bits)
    check_choice("clip", clip, CLIPS)
    out, inp = weight.shape
    check_group_size(group_size, inp)
    w = weight.to(torch.promote_types(weight.dtype, torch.float32)).reshape(-1, group_size or inp)
    low = w.amin(1, keepdim=True).clamp(max=0)
    high = w.amax(1, keepdim=True).clamp(min=0)
    if symmetric:
        high = torch.maximum(high, -low)
        low = -high
    make = partial(range_grid, bits=bits, symmetric=symmetric, scale_dtype=scale_dtype)
    if clip == "mse":
        count = max(1, CACHED // w.shape[1])
        parts = zip(w.split(count), low.split(count), high.split(count), strict=True)
        grids = [_least_squares_grid(*part, make) for part in parts]
        grid = replace(grids[0], step=torch.cat([g.step for g in grids]), zero=torch.cat([g.zero for g in grids]))
    else:
        grid = make(low, high)
    return replace(grid, step=grid.step.reshape(out, -1), zero=grid.zero.reshape(out, -1))


def _least_squares_grid(w: Tensor, low: Tensor, high: Tensor, make: Callable[[Tensor, Tensor], Grid]) -> Grid:
    """Return the grids of the share of their ranges that has the least squared error, group by group.

    What lies outside a range is clipped, and more of it the smaller the share: where the clipped part alone costs a
    group as much as its best share so far, no smaller one can win. Once that holds for all groups, the search ends.
    """
    buffer, error, whole = torch.empty_like(w), torch.full_like(low, torch.inf), make(low, high)
    best_step, best_zero = whole.step, whole.zero  # also where each error is too large for the dtype
    for first in range(0, len(CLIP_SHARES), CHECKED):
        shares = CLIP_SHARES[first : first + CHECKED]
        factors = torch.tensor(shares, dtype=w.dtype, device=w.device)
        grids = make(factors * low, factors * high)
        last, info = 2**grids.bits - 1, torch.finfo(grids.scale_dtype or w.dtype)
        for step, zero in zip(grids.step.split(1, dim=1), grids.zero.split(1, dim=1), strict=True):
            torch.div(w, step, out=buffer).round_()
            torch.maximum(buffer, -zero, out=buffer)  # signed codes; torch's clamp by tensors is far slower
            torch.minimum(buffer, last - zero, out=buffer).mul_(step).sub_(w)
            tried = buffer.square_().sum(1, keepdim=True)
            better = tried < error
            error = torch.where(better, tried, error)
            best_step, best_zero = torch.where(better, step, best_step), torch.where(better, zero, best_zero)
        # The ends of a grid lie within half a step of its range, further by what a step was rounded up.
        slack = step * (0.5 + last * info.eps) + last * info.smallest_normal
        torch.clamp(w, low * shares[-1] - slack, high * shares[-1] + slack, out=buffer)
        clipped = buffer.sub_(w).square_().sum(1, keepdim=True)
        if bool((clipped >= error * CERTAIN).all()):
            break
    return replace(grids, step=best_step, zero=best_zero)


@isolated
def range_grid(
    low: Float[Tensor, "rows groups"],
    high: Float[Tensor, "rows groups"],
    *,
    bits: int,
    symmetric: bool = False,
    scale_dtype: torch.dtype | None = None,
) -> Grid:
    r"""Return the grid of a given range: $s = (f_{max} - f_{min})/(2^b - 1)$, the lecture's formula.

    Asymmetric, the zero code is $\mathrm{round}(-f_{min}/s)$ and the whole range is covered. Symmetric, it is
    $2^{b-1}$: where the range is not symmetric, the longer side is clipped (:func:`fit_grid` widens the range first).

    Args:
        low: $f_{min}$, not above 0. high: $f_{max}$, not below 0; (rows, groups) each [weight units].
        bits, symmetric, scale_dtype: as in :func:`fit_grid`. A step of zero becomes 1.
    Raises:
        ValueError: bits outside 1..8, a range without 0, NaN or inf, as :func:`fit_grid` for scale_dtype.
    """
    check_bits(bits)
    check_floating("low", low)
    check_floating("high", high)
    if low.shape != high.shape:
        raise ValueError(f"low and high must have one shape, got {tuple(low.shape)} and {tuple(high.shape)}")
    check_finite("low", low)
    check_finite("high", high)
    low, high = low.detach(), high.detach()
    if bool((low > 0).any()) or bool((high < 0).any()):
        raise ValueError(
            f"each range must hold 0, got low up to {float(low.max()):g}, high from {float(high.min()):g}"
        )
    # In float64, because the difference of two float32 numbers can overflow float32.
    step = ((high.double() - low.double()) / (2**bits - 1)).to(low.dtype)
    step = torch.where(step > 0, step, torch.ones_like(step))
    if scale_dtype is not None:
        step = _round_up(step, scale_dtype)
    if not bool(torch.isfinite(step * 2**bits).all()):
        raise ValueError(f"a range of {bits} bits with steps up to {float(step.max()):g} leaves {step.dtype}")
    zero = torch.full_like(step, 2 ** (bits - 1)) if symmetric else torch.round(-low / step)
    return Grid(step, zero, bits, symmetric, scale_dtype)


def _round_up(step: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the least numbers of ``dtype`` not below the positive ``step``, in the dtype of ``step``.

    Rounded to nearest, half of the steps would shrink, and the ends of their ranges would be clipped.
    """
    if dtype not in SCALE_DTYPES:
        names = ", ".join(str(d).removeprefix("torch.") for d in SCALE_DTYPES)
        raise ValueError(f"scale_dtype must be None, {names}, got {dtype}")
    stored = step.to(dtype)
    up = stored.view(SCALE_DTYPES[dtype]) + (stored.to(step.dtype) < step)
    stored = up.to(SCALE_DTYPES[dtype]).view(dtype)
    if not bool(torch.isfinite(stored).all()):
        raise ValueError(f"a step of {float(step.max()):g} is too large for {dtype}")
    return stored.to(step.dtype)
