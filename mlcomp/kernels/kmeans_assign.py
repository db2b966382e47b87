r"""The assignment step of k-means: scores of all entries stay in registers, one index a point is written.

Notation: points x (N, d), codebook c (K, d), $a_i = \arg\min_k \tfrac12 \lVert c_k \rVert^2 - x_i \cdot c_k$.
The products run on tensor cores in three tf32 products each (error about 2⁻²¹), so N·K scores never go to memory.
Source: Lloyd 1982.   Syllabus: 1.07
"""

from typing import no_type_check

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from mlcomp.checks import check_dtype
from mlcomp.context import isolated
from mlcomp.kernels.launch import check_devices, tl, triton

REFERENCE = "mlcomp.quant.kmeans_assign"
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@isolated
def kmeans_assign(
    points: Float[Tensor, "points dim"], codebook: Float[Tensor, "entries dim"]
) -> Int32[Tensor, " points"]:
    """Return the index of each point's nearest codebook entry, the lowest where several are equally near.

    Args:
        points: (N, d), float16, bfloat16 or float32, d ≤ 128; codebook: (K, d), likewise. Not modified; copied first
            if not contiguous.
    Raises:
        ValueError: malformed points or codebook, wrong device. TypeError: another dtype.
    Guarantee: the entry returned is as near as the nearest, up to 1e-5·(|x||c| + |c|²). NaN in a point gives any
        index.
    Cost: N·d values read, 4·N bytes written, 2·N·K·d FLOPs (three times on the tensor cores).
    """
    check_devices(points=points, codebook=codebook)
    check_dtype("points", points.dtype, DTYPES)
    check_dtype("codebook", codebook.dtype, DTYPES)
    if points.ndim != 2 or points.numel() == 0 or points.shape[1] > 128:
        raise ValueError(f"points must be (N, d) with d from 1 to 128, got {tuple(points.shape)}")
    n, d = points.shape
    if codebook.ndim != 2 or len(codebook) == 0 or codebook.shape[1] != d:
        raise ValueError(f"codebook must be (entries, {d}), got {tuple(codebook.shape)}")
    points, codebook = points.contiguous(), codebook.float().contiguous()
    index = torch.empty(n, dtype=torch.int32, device=points.device)
    dim = max(16, triton.next_power_of_2(d + 1))
    block = min(256, max(16, triton.next_power_of_2(len(codebook))), 16384 // dim)
    tiles = 16 if n > 2**20 else 1  # tiles of points that share the work of loading the codebook
    _kernel[(triton.cdiv(n, 64 * tiles),)](
        points, codebook, codebook.square().sum(1) / 2, index, n, len(codebook), d, tiles,
        POINTS=64, ENTRIES=block, ONE=len(codebook) <= block, DIM=dim, HALF=points.dtype != torch.float32,
        num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    return index


@triton.jit
@no_type_check
def _high(x):
    """Return x cut to the 10 bits of mantissa that tf32 has; the rest, x minus this, is exact."""
    return (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)


@triton.jit
@no_type_check
def _entries(codebook_ptr, half_ptr, start, entries, d, dim, ENTRIES: tl.constexpr):
    """Return entries as columns, with -|c|²/2 as one more coordinate, which x has 1 for: the product is the score."""
    entry = start + tl.arange(0, ENTRIES)
    inside = (entry[None, :] < entries) & (dim[:, None] < d)
    c = tl.load(codebook_ptr + entry[None, :] * d + dim[:, None], mask=inside, other=0)
    # Missing entries: far below any real score, and finite, since infinity minus itself would be NaN.
    half = tl.load(half_ptr + entry, mask=entry < entries, other=1e38)
    return tl.where(dim[:, None] == d, -half[None, :], c)


@triton.jit
@no_type_check
def _best(x, c_high, c_low, ENTRIES: tl.constexpr, HALF: tl.constexpr):
    """Return the highest score of each point, and the first entry that has it."""
    x_high = _high(x)
    if HALF:  # 16-bit points are exact in tf32
        score = tl.dot(x_high, c_low, input_precision="tf32")
    else:
        score = tl.dot(x - x_high, c_high, input_precision="tf32")
        score = tl.dot(x_high, c_low, score, input_precision="tf32")
    score = tl.dot(x_high, c_high, score, input_precision="tf32")
    highest = tl.max(score, 1)
    # Where the score is the highest, the rank below is ENTRIES minus the entry; elsewhere it is negative (or
    # overflows to -inf), because two floats differ by more than 2⁻²⁵ of the larger. An addition and a multiplication
    # instead of a comparison and a selection: there are twice as many units for them.
    steep = 68719476736.0 / tl.maximum(tl.abs(highest), 1e-20)  # 2³⁶
    rank = (score - highest[:, None]) * steep[:, None] + (ENTRIES - tl.arange(0, ENTRIES)).to(tl.float32)[None, :]
    return highest, ENTRIES - tl.max(rank, 1).to(tl.int32)


@triton.jit
@no_type_check
def _kernel(
    points_ptr, codebook_ptr, half_ptr, index_ptr, n, entries, d, tiles, POINTS: tl.constexpr,
    ENTRIES: tl.constexpr, ONE: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    dim = tl.arange(0, DIM)
    c = _entries(codebook_ptr, half_ptr, 0, entries, d, dim, ENTRIES)
    first_high = _high(c)
    first_low = c - first_high
    for tile in range(tl.program_id(0) * tiles, (tl.program_id(0) + 1) * tiles):
        point = (tl.zeros((), tl.int64) + tile) * POINTS + tl.arange(0, POINTS)
        live = (point[:, None] < n) & (dim[None, :] < d)
        x = tl.load(points_ptr + point[:, None] * d + dim[None, :], mask=live, other=0).to(tl.float32)
        x = tl.where(dim[None, :] == d, 1.0, x)
        best, index = _best(x, first_high, first_low, ENTRIES, HALF)
        if not ONE:
            for start in range(ENTRIES, entries, ENTRIES):
                c = _entries(codebook_ptr, half_ptr, start, entries, d, dim, ENTRIES)
                high = _high(c)
                score, at = _best(x, high, c - high, ENTRIES, HALF)
                index = tl.where(score > best, start + at, index)
                best = tl.maximum(score, best)
        tl.store(index_ptr + point, index, mask=point < n)
