r"""Absolute-maximum quantization to 8-bit integers.

Notation: X values, s scale [units of X], q code.
$s = \max|X| / 127$ and $q = \mathrm{round}(X / s)$, which is the lecture's
$\mathrm{round}(127\,X / \max|X|)$; then $X \approx s\,q$.
Source: Dettmers et al. 2022, arXiv:2208.07339, section 2.1.   Syllabus: 4.02
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from mlcomp.checks import check_finite, check_floating, check_whole
from mlcomp.context import isolated


class AbsmaxInt8(NamedTuple):
    """Codes and scale; unpacks as ``codes, scale``.

    Attributes:
        codes: int8 in −127 … 127, in the shape of the input (−128 is not used).
        scale: [units of X], 1 in each reduced dimension (a single number without ``dim``); float32, or float64.
    """

    codes: Int8[Tensor, "..."]
    scale: Float[Tensor, "..."]

    @isolated
    def dequantize(self) -> Float[Tensor, "..."]:
        """Return codes · scale."""
        return self.codes.to(self.scale.dtype) * self.scale


@isolated
def absmax_int8(x: Float[Tensor, "..."], dim: int | tuple[int, ...] | None = None) -> AbsmaxInt8:
    """Quantize to int8 with one scale for the whole tensor, or one for each slice along ``dim``.

    Args:
        x: any shape with at least one entry, any float dtype, computed in float32 (float64 stays); not modified.
        dim: dimension(s) over which the maximum is taken, so −1 gives every row of (…, n) its own scale.
            None: one scale for all.
    Returns:
        codes int8 and the scale that turns them back.
    Raises:
        ValueError: x is empty, NaN or inf, or has no such dim. TypeError: x is not floating point.
    Guarantee: |x − codes·scale| ≤ scale/2 up to float rounding; the largest magnitude gets code ±127; exact
        ties go to the even code (torch.round). A slice of zeros gets scale 1 and decodes to zeros.
        (Only where the maximum is subnormal, below 1e-38, is the scale too coarse for the bound.)
    """
    check_floating("x", x)
    if x.numel() == 0:
        raise ValueError(f"x must have at least one entry, got shape {tuple(x.shape)}")
    check_finite("x", x)
    for axis in () if dim is None else (dim,) if isinstance(dim, int) else dim:
        check_whole("dim", axis, -x.ndim, x.ndim - 1)
    x = x.detach()
    x = x if x.dtype == torch.float64 else x.float()
    absmax = x.abs().amax() if dim is None else x.abs().amax(dim, keepdim=True)
    # max/127 of a subnormal maximum can underflow to 0; the smallest subnormal then serves.
    tiny = torch.finfo(x.dtype).smallest_normal * torch.finfo(x.dtype).eps
    scale = torch.where(absmax > 0, (absmax / 127).clamp(min=tiny), torch.ones_like(absmax))
    codes = torch.round(x / scale).clamp(-127, 127)
    return AbsmaxInt8(codes.to(torch.int8), scale)
