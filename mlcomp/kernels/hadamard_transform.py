r"""The Walsh-Hadamard transform on tensor cores: a row is a small box, and each side of the box one matrix product.

Notation: $n = m\,a\,b$ and $H_n = H_m \otimes H_a \otimes H_b$. A row reshaped to (m, a, b) is multiplied by $H_b$
along its last side, then by $H_a$ and $H_m$ along the others, without leaving the multiprocessor: x is read once and
the result written once. Entries ±1 are exact in 16 bits; a float32 operand goes in as a sum of 16-bit terms, two
where the result has 16 bits (error 2⁻¹⁷), three for float32 (2⁻²⁴).
Source: Tseng et al. 2024, arXiv:2402.04396, section 3; as matrix products: Dao 2024, fast-hadamard-transform, and
Agarwal et al. 2024, arXiv:2412.08832.   Syllabus: 1.14
"""

from functools import lru_cache
from typing import no_type_check

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import check_dtype
from mlcomp.context import isolated
from mlcomp.kernels.launch import INTERPRETED, check_devices, tl, triton
from mlcomp.quant.post_training.hadamard import hadamard_matrix, paley_order

REFERENCE = "mlcomp.quant.hadamard_transform"
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
LONGEST = 32768  # values of a padded row


@isolated
def hadamard_transform(x: Float[Tensor, "... n"], *, transpose: bool = False) -> Float[Tensor, "... n"]:
    r"""Return $H_n x / \sqrt n$ of each row ($H_n^\top x / \sqrt n$ with ``transpose``).

    Args:
        x: (…, n), float16, bfloat16 or float32, n = m·2^k with 2^k ≥ 16 and n up to 32768 (m rounded up to a power of
            two); not modified. Copied first if not contiguous.
        transpose: the inverse of the transform.
    Returns:
        In the shape and dtype of x.
    Raises:
        ValueError: another n, or x is empty or on the wrong device. TypeError: another dtype.
    Guarantee: relative error (root mean square) below 1e-6 in float32, one rounding of the result in 16 bits.
    Cost: n values read and n written a row.
    """
    check_devices(x=x)
    check_dtype("x", x.dtype, DTYPES)
    if x.ndim == 0 or x.numel() == 0:
        raise ValueError(f"x must be (…, n) with at least one entry, got shape {tuple(x.shape)}")
    n = x.shape[-1]
    m = paley_order(n)
    power = n // m
    padded = triton.next_power_of_2(m) if m > 1 else 1
    padded = max(16, padded) if m > 1 else 1
    if power < 16 or power * padded > LONGEST:
        raise ValueError(f"n must be m·2^k with 2^k ≥ 16 and at most {LONGEST} (m rounded up), got {n} = {m}·{power}")
    # Sides of 16 at least, which a tensor core takes; one side up to 128.
    a = 1 if power < 256 else 1 << ((power.bit_length() - 1) // 2)
    b = power // a
    rows = x.reshape(-1, n).contiguous()
    y = torch.empty_like(rows)
    together = max(1, 4096 // (padded * power))
    programs = min(triton.cdiv(len(rows), together), 1056)
    half = torch.float32 if INTERPRETED else torch.bfloat16
    paley = _paley_factor(m, padded, transpose, half, x.device)
    size = together * padded * power
    _kernel[(programs,)](
        rows, y, paley, len(rows), n**-0.5,
        R=together, M=m, PADDED=padded, A=a, B=b, FULL=x.dtype == torch.float32,
        num_warps=4 if size <= 4096 else 8 if size <= 16384 else 16, enable_fp_fusion=True,
    )  # fmt: skip
    return y.reshape(x.shape)


@lru_cache(maxsize=16)
def _paley_factor(m: int, padded: int, transpose: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the right factor that transforms the side of length m, (padded, padded), zero beyond m."""
    factor = torch.zeros(padded, padded)
    factor[:m, :m] = hadamard_matrix(m) if transpose else hadamard_matrix(m).T
    return factor.to(device=device, dtype=dtype)


@triton.jit
@no_type_check
def _sylvester(N: tl.constexpr, dtype):
    """Return the Hadamard matrix of order N: the sign is the parity of the bits that row and column share."""
    index = tl.arange(0, N)
    bits = index[:, None] & index[None, :]
    bits = bits ^ (bits >> 4)
    bits = bits ^ (bits >> 2)
    bits = bits ^ (bits >> 1)
    return (1 - 2 * (bits & 1)).to(tl.float32).to(dtype)


@triton.jit
@no_type_check
def _times(x, factor, TERMS: tl.constexpr):
    """Return x · factor in float32: x, in float32, is split into terms of the factor's dtype."""
    part = x.to(factor.dtype)
    y = tl.dot(part, factor, input_precision="ieee")
    for _ in tl.static_range(1, TERMS):
        x -= part.to(tl.float32)
        part = x.to(factor.dtype)
        y = tl.dot(part, factor, y, input_precision="ieee")
    return y


@triton.jit
@no_type_check
def _kernel(
    x_ptr, y_ptr, paley_ptr, rows, scale, R: tl.constexpr, M: tl.constexpr, PADDED: tl.constexpr,
    A: tl.constexpr, B: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    half = paley_ptr.dtype.element_ty
    last = _sylvester(B, half if FULL else x_ptr.dtype.element_ty)
    line = tl.arange(0, R * PADDED * A)
    side = line // A % PADDED
    within = (line // (PADDED * A) * M + side) * A + line % A
    at = within[:, None] * B + tl.arange(0, B)[None, :]
    for first in range(tl.program_id(0) * R, rows, tl.num_programs(0) * R):
        live = ((side < M) & (first + line // (PADDED * A) < rows))[:, None]
        base = (tl.zeros((), tl.int64) + first) * (M * A * B)
        x = tl.load(x_ptr + base + at, mask=live, other=0)
        if FULL:
            y = _times(x, last, 3)
        else:
            y = tl.dot(x, last, input_precision="ieee").to(tl.float32)
        if A > 1:
            y = tl.permute(tl.reshape(y, (R * PADDED, A, B)), (0, 2, 1))
            y = _times(tl.reshape(y, (R * PADDED * B, A)), _sylvester(A, half), 3 if FULL else 2)
            y = tl.reshape(tl.permute(tl.reshape(y, (R * PADDED, B, A)), (0, 2, 1)), (R * PADDED * A, B))
        if PADDED > 1:
            index = tl.arange(0, PADDED)
            factor = tl.load(paley_ptr + index[:, None] * PADDED + index[None, :])
            y = tl.permute(tl.reshape(y, (R, PADDED, A * B)), (0, 2, 1))
            y = _times(tl.reshape(y, (R * A * B, PADDED)), factor, 3 if FULL else 2)
            y = tl.reshape(tl.permute(tl.reshape(y, (R, A * B, PADDED)), (0, 2, 1)), (R * PADDED * A, B))
        tl.store(y_ptr + base + at, (y * scale).to(y_ptr.dtype.element_ty), mask=live)
