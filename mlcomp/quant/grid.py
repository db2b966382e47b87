r"""The affine grid that every uniform quantizer of the course rounds to.

Notation: W weight, s step [weight units], z zero code, b bits, q code.
$q = \mathrm{clip}(\mathrm{round}(w/s) + z,\ 0,\ 2^b-1)$ and $\hat w = s\,(q - z)$.
With $z = 2^{b-1}$ this is the symmetric quantizer with signed codes $q - z$ from $-2^{b-1}$ to $2^{b-1}-1$.
Source: Jacob et al. 2018, arXiv:1712.05877, eq. (1).   Syllabus: 1.02, 1.03
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mlcomp.checks import check_bits, check_finite

# Shares of the full range that the MSE-optimal clip tries: 1.00, 0.99, …, 0.01. For a whole tensor whose largest
# weight is forty times its root mean square, as in MiniLM, the best share in three bits is 0.07, 5.8 dB better
# than 0.20.
CLIP_SHARES = tuple(1 - i / 100 for i in range(100))
# What a step may be stored in, and the integers of the same width: positive floats have the order of their patterns.
SCALE_DTYPES = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}


@dataclass(frozen=True)
class Grid:
    """One affine grid per row of a matrix: ``step`` and ``zero`` are (rows, 1) float32, ``zero`` whole numbers.

    A symmetric grid has the fixed zero code $2^{b-1}$, which therefore costs nothing to store.
    """

    step: Float[Tensor, "rows 1"]
    zero: Float[Tensor, "rows 1"]
    bits: int
    symmetric: bool

    def encode(self, weight: Float[Tensor, "rows n"]) -> UInt8[Tensor, "rows n"]:
        """Return the nearest codes, 0 … 2^b − 1 (ties to even, as torch.round)."""
        return self._codes(weight).to(torch.uint8)

    def decode(self, codes: UInt8[Tensor, "rows n"]) -> Float[Tensor, "rows n"]:
        """Return the values of the codes, [weight units], in the step's dtype."""
        return (codes.to(self.step.dtype) - self.zero) * self.step

    def round(self, weight: Float[Tensor, "rows n"]) -> Float[Tensor, "rows n"]:
        """Return the nearest grid values: decode(encode(weight))."""
        return (self._codes(weight) - self.zero) * self.step

    def _codes(self, weight: Tensor) -> Tensor:
        return torch.clamp(torch.round(weight / self.step) + self.zero, 0, 2**self.bits - 1)


def fit_grid(
    weight: Float[Tensor, "rows n"],
    *,
    bits: int,
    symmetric: bool = False,
    clip: str = "minmax",
    scale_dtype: torch.dtype | None = None,
) -> Grid:
    r"""Fit one grid to each row.

    Asymmetric: the range is [min(w, 0), max(w, 0)]; zero is always on the grid. Symmetric: the range is
    [−max|w|, max|w|] and the zero code is $2^{b-1}$. The step is range / (2^b − 1). A constant zero row gets step 1,
    so it decodes to exact zeros; so does a row whose step would underflow (range below 1e-44 in float32). A row of
    one repeated value is exact up to rounding on an asymmetric grid. With one bit the symmetric grid is
    {−2·max|w|, 0}: lawful, but hardly useful.

    Args:
        weight: (rows, n), computed in float32 (float64 for float64 weights); not modified.
        bits: bits per code, 1 to 8.
        symmetric: fixed zero code instead of a stored one.
        clip: "minmax" keeps the whole range; "mse" shrinks it to the share (1.00, 0.99, …, 0.01) with the least
            squared error, row by row; both ends shrink alike.
        scale_dtype: dtype that the steps will be stored in: float32, float16 or bfloat16. A step is rounded up to
            a number of it before anything is encoded, so the error includes what the narrow step costs; the grid
            holds it in float32 all the same. None: as computed.
    Raises:
        ValueError: bits outside 1..8, unknown clip or scale_dtype, a step too large for scale_dtype.
    Guarantee: with "minmax" every |w − ŵ| ≤ step/2, up to float rounding. With "mse" no row has a larger squared
        error than with "minmax", since the whole range is among the candidates.
    Cost: "mse" makes 100 passes over the matrix, with three matrices of its size as working memory.
    """
    check_bits(bits)
    if clip not in ("minmax", "mse"):
        raise ValueError(f'clip must be "minmax" or "mse", got {clip!r}')
    w = weight if weight.dtype == torch.float64 else weight.float()
    low = w.amin(1, keepdim=True).clamp(max=0)
    high = w.amax(1, keepdim=True).clamp(min=0)
    if symmetric:
        high = torch.maximum(high, -low)
        low = -high
    if clip == "minmax":
        return range_grid(low, high, bits=bits, symmetric=symmetric, scale_dtype=scale_dtype)

    def shrunk(share: float) -> tuple[Tensor, Tensor, Tensor]:
        grid = range_grid(share * low, share * high, bits=bits, symmetric=symmetric, scale_dtype=scale_dtype)
        return grid.step, grid.zero, (w - grid.round(w)).square().sum(1, keepdim=True)

    step, zero, error = shrunk(CLIP_SHARES[0])
    for share in CLIP_SHARES[1:]:
        new = shrunk(share)
        better = new[2] < error
        step, zero, error = (torch.where(better, a, b) for a, b in zip(new, (step, zero, error), strict=True))
    return Grid(step, zero, bits, symmetric)


def range_grid(
    low: Float[Tensor, "rows 1"],
    high: Float[Tensor, "rows 1"],
    *,
    bits: int,
    symmetric: bool = False,
    scale_dtype: torch.dtype | None = None,
) -> Grid:
    r"""Return the grid of a given range: $s = (f_{max} - f_{min})/(2^b - 1)$, the lecture's formula.

    Asymmetric, the zero code is $\mathrm{round}(-f_{min}/s)$ and the whole range is covered. Symmetric, it is
    $2^{b-1}$: where the range is not symmetric, the longer side is clipped (:func:`fit_grid` widens the range first).

    Args:
        low: $f_{min}$, not above 0. high: $f_{max}$, not below 0; (rows, 1) each [weight units].
        bits, symmetric, scale_dtype: as in :func:`fit_grid`. A step of zero becomes 1.
    Raises:
        ValueError: bits outside 1..8, a range without 0, NaN or inf, as :func:`fit_grid` for scale_dtype.
    """
    check_bits(bits)
    check_finite("low", low)
    check_finite("high", high)
    if bool((low > 0).any()) or bool((high < 0).any()):
        raise ValueError(
            f"each range must hold 0, got low up to {float(low.max()):g}, high from {float(high.min()):g}"
        )
    # In float64, because the difference of two float32 numbers can overflow float32.
    step = ((high.double() - low.double()) / (2**bits - 1)).to(low.dtype)
    step = torch.where(step > 0, step, torch.ones_like(step))
    if scale_dtype is not None:
        step = _round_up(step, scale_dtype)
    zero = torch.full_like(step, 2 ** (bits - 1)) if symmetric else torch.round(-low / step)
    return Grid(step, zero, bits, symmetric)


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
