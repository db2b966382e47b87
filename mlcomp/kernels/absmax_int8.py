r"""Row-wise absmax quantization to int8 in one pass over memory.

Notation: X values, one scale $s = \max|X| / 127$ a row [units of X], $q = \mathrm{round}(X / s)$.
Each row is read once, kept in registers, reduced to its maximum, divided and written: the bytes of X in, one byte a
value out. Rows longer than 32768 do not fit and are read twice.
Source: Dettmers et al. 2022, arXiv:2208.07339, section 2.1.   Syllabus: 4.02
"""

from typing import no_type_check

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import check_dtype
from mlcomp.context import isolated
from mlcomp.formats.absmax_int8 import AbsmaxInt8
from mlcomp.kernels.launch import INTERPRETED, check_devices, tl, triton

REFERENCE = "mlcomp.formats.absmax_int8.absmax_int8"
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
LONGEST = 32768  # values of a row that registers hold: 64 for each thread of 16 warps


@isolated
def absmax_int8(x: Float[Tensor, "..."], dim: int | None = None) -> AbsmaxInt8:
    """Quantize to int8 with one scale for the whole tensor, or one for each row of x (…, n).

    Args:
        x: (…, n) with at least one entry, float16, bfloat16 or float32; not modified. Copied first if its rows do not
            lie one after the other in memory.
        dim: the last dimension: −1, or x.ndim − 1. (The reference reduces any.) None: one scale for all, found and
            applied by a single program as if x were one row, so slow for a large x.
    Returns:
        The reference's codes and scale, bit for bit.
    Raises:
        ValueError: x is empty or on the wrong device, dim is not the last. TypeError: another dtype.
    Deviations from the reference: a row that holds NaN or infinity gets scale inf and decodes to NaN instead of
        raising, since an error would have to wait for the GPU.
    Cost: n·(size of a value) + n bytes read and written a row.
    """
    check_devices(x=x)
    check_dtype("x", x.dtype, DTYPES)
    if x.numel() == 0 or (x.ndim == 0 and dim is not None):
        raise ValueError(f"x must be (…, n) with at least one entry, got shape {tuple(x.shape)}")
    if dim not in (None, -1, x.ndim - 1):
        raise ValueError(f"the kernel takes the maximum over the last dimension: dim must be -1 or None, got {dim!r}")
    n = x.numel() if dim is None else x.shape[-1]
    rows = x.reshape(-1, n).contiguous()
    codes = torch.empty(rows.shape, dtype=torch.int8, device=x.device)
    scale = torch.empty(len(rows), dtype=torch.float32, device=x.device)
    block = min(triton.next_power_of_2(n), LONGEST)
    # 64 values a thread: enough loads in flight, and several rows at once on a multiprocessor.
    warps = min(16, max(1, block // 2048))
    # Contraction of multiply and add would change the rounding, hence the codes. The interpreter has no fused
    # multiply-add (before Triton 3.9), so there it divides.
    _kernel[(len(rows),)](
        rows, codes, scale, n, BLOCK=block, FITS=n <= block, DIVIDE=INTERPRETED, num_warps=warps,
        enable_fp_fusion=False,
    )  # fmt: skip
    return AbsmaxInt8(codes.reshape(x.shape), scale.reshape(() if dim is None else (*x.shape[:-1], 1)))


@triton.jit
@no_type_check
def _round(x, scale, inverse, lift, DIVIDE: tl.constexpr):
    x = tl.where(inverse > 0, x * lift, 0.0)
    if DIVIDE:
        quotient = tl.div_rn(x, scale)
    else:
        # The same correctly rounded quotient from one reciprocal a row: two corrections by the exact remainder
        # (Markstein 1990). A division for each value would take longer than the memory.
        quotient = x * inverse
        quotient = tl.fma(tl.fma(quotient, -scale, x), inverse, quotient)
        quotient = tl.fma(tl.fma(quotient, -scale, x), inverse, quotient)
    # 1.5·2²³ pushes the fraction out of the mantissa: the addition itself rounds, ties to even, and leaves the whole
    # number in the low bits, where int8 is its low byte.
    return (quotient + 12582912.0).to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
@no_type_check
def _magnitude(x):
    # |x| as the integer of its bits: the same order, and NaN comes out above infinity where a float maximum drops it.
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
@no_type_check
def _kernel(x_ptr, codes_ptr, scale_ptr, n, BLOCK: tl.constexpr, FITS: tl.constexpr, DIVIDE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * n
    codes_ptr += row * n
    column = tl.arange(0, BLOCK)
    first = tl.load(x_ptr + column, mask=column < n, other=0)
    largest = _magnitude(first.to(tl.float32))
    if not FITS:
        for start in range(BLOCK, n, BLOCK):
            rest = start + column
            x = tl.load(x_ptr + rest, mask=rest < n, other=0).to(tl.float32)
            largest = tl.maximum(largest, _magnitude(x))
    absmax = tl.minimum(tl.max(largest, 0), 0x7F800000).to(tl.float32, bitcast=True)  # NaN becomes infinity
    # The reference's scale: 1 for a row of zeros, never below the smallest float32, whose bits are the integer 1.
    scale = tl.maximum(tl.div_rn(absmax, 127.0).to(tl.int32, bitcast=True), 1).to(tl.float32, bitcast=True)
    scale = tl.where(absmax > 0, scale, 1.0)
    tl.store(scale_ptr + row, scale)
    # Rows of tiny values are lifted by a power of two (exact) so that no remainder underflows.
    lift = tl.where(absmax < 8.673617379884035e-19, 1.2676506002282294e30, 1.0)  # 2⁻⁶⁰, 2¹⁰⁰
    finite = absmax < float("inf")
    scale = tl.where(finite, scale * lift, 1.0)
    inverse = tl.where(finite, tl.div_rn(1.0, scale), 0.0)
    tl.store(codes_ptr + column, _round(first.to(tl.float32), scale, inverse, lift, DIVIDE), mask=column < n)
    if not FITS:
        for start in range(BLOCK, n, BLOCK):
            rest = start + column
            x = tl.load(x_ptr + rest, mask=rest < n, other=0).to(tl.float32)
            tl.store(codes_ptr + rest, _round(x, scale, inverse, lift, DIVIDE), mask=rest < n)
