r"""The product of a vector with a weight of additive codebooks, by look-ups.

Notation: as the reference. The table $T_{jc}[b] = C_c[b] \cdot x_j$ holds the products of all entries with all pieces of
x; then $y_n = s_n \sum_{jc} T_{jc}[b_{njc}]$. A program makes the part of the table for GROUPS pieces by one small matrix
product, keeps it in shared memory, and looks up the codes of many rows; the parts' sums are added in a fixed order, so
that the result is the same every time.
Source: Egiazarian et al. 2024, arXiv:2401.06118, section 4.   Syllabus: 1.13
"""

from typing import no_type_check

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.formats.additive_codebook import AdditiveCodes
from mlcomp.kernels.additive_decode import check_operand
from mlcomp.kernels.launch import INTERPRETED, check_devices, check_dtype, tl, triton

REFERENCE = "mlcomp.formats.additive_codebook.additive_matvec"
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
GROUPS = 16  # pieces of x in one program: what a tensor core takes


def additive_matvec(x: Float[Tensor, " inp"], weight: AdditiveCodes) -> Float[Tensor, " out"]:
    """Return W x without decoding W.

    Args:
        x: (inp,), float16, bfloat16 or float32; not modified.
        weight: 256 entries in each codebook; codebooks float16, bfloat16 or float32.
    Returns:
        (out,) in the dtype of x, summed in float32.
    Raises:
        ValueError: x does not fit, another number of entries, different devices. TypeError: another dtype.
    Guarantee: relative error below 1e-5 in float32, one rounding of the result in 16 bits.
    Cost: out·groups·books bytes of codes and as many look-ups.
    """
    check_operand(weight)
    check_devices(x=x, codes=weight.codes)
    check_dtype("x", x, DTYPES)
    if x.shape != (weight.inp,):
        raise ValueError(f"x must be ({weight.inp},), got {tuple(x.shape)}")
    out, groups, books = weight.codes.shape
    parts = triton.cdiv(groups, GROUPS)
    part = torch.empty(parts, out, dtype=torch.float32, device=x.device)
    y = torch.empty(out, dtype=x.dtype, device=x.device)
    # 16-bit operands that agree are multiplied as they are, exactly; others in float32.
    same = x.dtype == weight.codebooks.dtype != torch.float32 and not INTERPRETED
    dim, rows = weight.codebooks.shape[2], 2048
    _kernel[(parts, triton.cdiv(out, rows))](
        x.contiguous(), weight.codebooks.contiguous(), weight.codes.contiguous(), part, out, groups, BOOKS=books,
        PADDED=triton.next_power_of_2(books), SIZE=dim, DIM=max(16, triton.next_power_of_2(dim)), GROUPS=GROUPS,
        SAME=same, ROWS=rows, CHUNK=256, num_warps=8, enable_fp_fusion=False,
    )  # fmt: skip
    _add[(triton.cdiv(out, 256),)](
        part, weight.scale.float().contiguous(), y, out, parts, PARTS=triton.next_power_of_2(parts), BLOCK=256,
        num_warps=8, enable_fp_fusion=False,
    )  # fmt: skip
    return y


@triton.jit
@no_type_check
def _kernel(
    x_ptr, books_ptr, codes_ptr, part_ptr, out, groups, BOOKS: tl.constexpr, PADDED: tl.constexpr,
    SIZE: tl.constexpr, DIM: tl.constexpr, GROUPS: tl.constexpr, SAME: tl.constexpr, ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)
    dim = tl.arange(0, DIM)
    live = (group[:, None] < groups) & (dim[None, :] < SIZE)
    x = tl.load(x_ptr + group[:, None] * SIZE + dim[None, :], mask=live, other=0)
    entry = tl.arange(0, PADDED * 256)
    live = (entry[None, :] < BOOKS * 256) & (dim[:, None] < SIZE)
    c = tl.load(books_ptr + entry[None, :] * SIZE + dim[:, None], mask=live, other=0)
    if not SAME:
        x, c = x.to(tl.float32), c.to(tl.float32)
    # One line of 256 products for each piece and codebook.
    table = tl.reshape(tl.dot(x, c, input_precision="ieee"), (GROUPS * PADDED, 256))
    line = tl.arange(0, GROUPS * PADDED)
    piece, book = tl.program_id(0) * GROUPS + line // PADDED, line % PADDED
    codes_ptr += piece * BOOKS + book
    used = (piece < groups) & (book < BOOKS)
    for start in range(0, ROWS, CHUNK):
        row = tl.program_id(1) * ROWS + start + tl.arange(0, CHUNK)
        at = codes_ptr[:, None] + row.to(tl.int64)[None, :] * (groups * BOOKS)
        code = tl.load(at, mask=used[:, None] & (row[None, :] < out), other=0).to(tl.int32)
        # Lines without a code hold zeros, since x or the codebook was masked.
        total = tl.sum(tl.gather(table, code, 1), 0)
        tl.store(part_ptr + tl.program_id(0) * out + row, total, mask=row < out)


@triton.jit
@no_type_check
def _add(part_ptr, scale_ptr, y_ptr, out, parts, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    part = tl.arange(0, PARTS)
    live = (part[:, None] < parts) & (row[None, :] < out)
    total = tl.sum(tl.load(part_ptr + part[:, None] * out + row[None, :], mask=live, other=0), 0)
    y = total * tl.load(scale_ptr + row, mask=row < out, other=0)
    tl.store(y_ptr + row, y.to(y_ptr.dtype.element_ty), mask=row < out)
