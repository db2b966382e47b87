r"""The product of two matrices of signs: XOR and population count, 32 signs at a time.

Notation: as the reference, $a \cdot b = n - 2\,\mathrm{popcount}(a \oplus b)$, both padded with equal bits.
A program holds a tile of outputs; for some words of the columns it compares every pair of rows. The count is the
classic sum of bits in pairs, fours and bytes, which the compiler knows as one instruction.
Source: Courbariaux et al. 2016, arXiv:1602.02830, section 4.   Syllabus: 4.03
"""

from typing import no_type_check

import torch
from jaxtyping import Int32
from torch import Tensor
from torch.nn import functional as F

from mlcomp.context import isolated
from mlcomp.formats.xnor_matmul import PackedSigns, check_packed
from mlcomp.kernels.launch import INTERPRETED, check_devices, tl, triton

REFERENCE = "mlcomp.formats.xnor_matmul.xnor_matmul"


@isolated
def xnor_matmul(x: PackedSigns, weight: PackedSigns) -> Int32[Tensor, "rows out"]:
    """Return x · weightᵀ of two matrices of signs.

    Args:
        x: (rows, columns). weight: (out, columns). Copied first if a row is no whole number of 32-bit words.
    Returns:
        (rows, out) whole numbers from −columns to columns.
    Raises:
        ValueError: different numbers of columns, packed matrices that are none, different devices. TypeError: not
            packed signs.
    Guarantee: exact, for any number of columns.
    Cost: an XOR, a count and an addition for 32 products; out·columns/8 bytes, read once for up to 16 rows.
    """
    for name, matrix in (("x", x), ("weight", weight)):
        check_packed(name, matrix)
    check_devices(x=x.packed, weight=weight.packed)
    if x.columns != weight.columns:
        raise ValueError(f"x has {x.columns} columns and weight {weight.columns}: they must agree")
    left, right = words(x.packed), words(weight.packed)
    (rows, inner), out = left.shape, len(right)
    y = torch.empty(rows, out, dtype=torch.int32, device=left.device)
    if not y.numel():
        return y
    tile = min(16, triton.next_power_of_2(rows))
    # The interpreter pays for each program, a GPU for each register.
    across, deep = (128, 32) if INTERPRETED else (64, 128 // tile)
    _kernel[(triton.cdiv(out, across), triton.cdiv(rows, tile))](
        left, right, y, rows, out, inner, x.columns, ROWS=tile, OUT=across, WORDS=deep, WHOLE=inner % deep == 0,
        num_warps=4, num_stages=3,
    )  # fmt: skip
    return y


def words(packed: Tensor) -> Int32[Tensor, "rows words"]:
    """Return the bytes of each row as 32-bit words, the last one filled up with zeros."""
    return F.pad(packed, (0, -packed.shape[1] % 4)).contiguous().view(torch.int32)


@triton.jit
@no_type_check
def _kernel(
    x_ptr, weight_ptr, y_ptr, rows, out, inner, columns, ROWS: tl.constexpr, OUT: tl.constexpr, WORDS: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(0) * OUT + tl.arange(0, OUT)
    word = tl.arange(0, WORDS)
    # Past the edge the last row is read again; what comes of it is not stored.
    x_ptr += tl.minimum(row, rows - 1).to(tl.int64)[:, None] * inner + word[None, :]
    weight_ptr += tl.minimum(col, out - 1).to(tl.int64)[:, None] * inner + word[None, :]
    total = tl.zeros((OUT, ROWS, WORDS), tl.int32)
    for start in range(0, inner, WORDS):
        if WHOLE:
            x, w = tl.load(x_ptr + start), tl.load(weight_ptr + start)
        else:
            live = start + word[None, :] < inner
            x, w = tl.load(x_ptr + start, mask=live, other=0), tl.load(weight_ptr + start, mask=live, other=0)
        total += _popcount(w[:, None, :] ^ x[None, :, :])
    differ = tl.sum(total, 2)
    y = y_ptr + row[None, :].to(tl.int64) * out + col[:, None]
    tl.store(y, columns - 2 * differ, mask=(row[None, :] < rows) & (col[:, None] < out))


@triton.jit
@no_type_check
def _popcount(x):
    x = x.to(tl.uint32, bitcast=True)
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24).to(tl.int32)
