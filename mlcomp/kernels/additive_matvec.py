r"""The product of a vector with a weight of additive codebooks, by look-ups.

Notation: as the reference. The table $T_{jc}[b] = C_c[b] \cdot x_j$ holds the products of all entries with all pieces
of x, made by one small matrix product; then $y_n = s_n \sum_{jc} T_{jc}[b_{njc}]$. A program looks up SLICE columns
(j, c) of many rows, so that its part of the table, one kilobyte a column, stays in the first-level cache; the slices'
sums are added in a fixed order, so that the result is the same every time.
Source: Egiazarian et al. 2024, arXiv:2401.06118, section 4.   Syllabus: 1.13
"""

from typing import no_type_check

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import check_dtype
from mlcomp.context import isolated
from mlcomp.formats.additive_codebook import AdditiveCodes
from mlcomp.kernels.additive_decode import check_operand
from mlcomp.kernels.launch import INTERPRETED, check_devices, tl, triton

REFERENCE = "mlcomp.formats.additive_codebook.additive_matvec"
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
GROUPS = 16  # pieces of x in a product: what a tensor core takes
SLICE = 32  # columns of the table in a program: 32 KB


@isolated
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
    check_dtype("x", x.dtype, DTYPES)
    if x.shape != (weight.inp,):
        raise ValueError(f"x must be ({weight.inp},), got {tuple(x.shape)}")
    out, groups, books = weight.codes.shape
    columns = groups * books
    table = torch.empty(columns, 256, dtype=torch.float32, device=x.device)
    # 16-bit operands that agree are multiplied as they are, exactly; others in float32.
    same = x.dtype == weight.codebooks.dtype != torch.float32 and not INTERPRETED
    dim = weight.codebooks.shape[2]
    _table[(triton.cdiv(groups, GROUPS), books)](
        x.contiguous(), weight.codebooks.contiguous(), table, groups, BOOKS=books, SIZE=dim,
        DIM=max(16, triton.next_power_of_2(dim)), GROUPS=GROUPS, SAME=same, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    parts = triton.cdiv(columns, SLICE)
    part = torch.empty(parts, out, dtype=torch.float32, device=x.device)
    _look_up[(parts, triton.cdiv(out, 512))](
        table, weight.codes.contiguous(), part, out, columns, COLUMNS=SLICE, ROWS=256, BLOCK=512, num_warps=8,
        enable_fp_fusion=False,
    )  # fmt: skip
    y = torch.empty(out, dtype=x.dtype, device=x.device)
    _add[(triton.cdiv(out, 256),)](
        part, weight.scale.float().contiguous(), y, out, parts, PARTS=triton.next_power_of_2(parts), BLOCK=256,
        num_warps=8, enable_fp_fusion=False,
    )  # fmt: skip
    return y


@triton.jit
@no_type_check
def _table(
    x_ptr, books_ptr, table_ptr, groups, BOOKS: tl.constexpr, SIZE: tl.constexpr, DIM: tl.constexpr,
    GROUPS: tl.constexpr, SAME: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)
    dim = tl.arange(0, DIM)
    live = (group[:, None] < groups) & (dim[None, :] < SIZE)
    x = tl.load(x_ptr + group[:, None] * SIZE + dim[None, :], mask=live, other=0)
    entry = tl.program_id(1) * 256 + tl.arange(0, 256)
    c = tl.load(books_ptr + entry[None, :] * SIZE + dim[:, None], mask=dim[:, None] < SIZE, other=0)
    if not SAME:
        x, c = x.to(tl.float32), c.to(tl.float32)
    line = table_ptr + group[:, None] * (BOOKS * 256) + entry[None, :]
    tl.store(line, tl.dot(x, c, input_precision="ieee"), mask=group[:, None] < groups)


@triton.jit
@no_type_check
def _look_up(
    table_ptr, codes_ptr, part_ptr, out, columns, COLUMNS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    for start in range(0, BLOCK, ROWS):
        row = tl.program_id(1) * BLOCK + start + tl.arange(0, ROWS)
        live = (row[:, None] < out) & (column[None, :] < columns)
        code = tl.load(codes_ptr + row.to(tl.int64)[:, None] * columns + column[None, :], mask=live, other=0)
        value = tl.load(table_ptr + column[None, :] * 256 + code.to(tl.int32), mask=live, other=0)
        tl.store(part_ptr + tl.program_id(0) * out + row, tl.sum(value, 1), mask=row < out)


@triton.jit
@no_type_check
def _add(part_ptr, scale_ptr, y_ptr, out, parts, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    part = tl.arange(0, PARTS)
    live = (part[:, None] < parts) & (row[None, :] < out)
    total = tl.sum(tl.load(part_ptr + part[:, None] * out + row[None, :], mask=live, other=0), 0)
    y = total * tl.load(scale_ptr + row, mask=row < out, other=0)
    tl.store(y_ptr + row, y.to(y_ptr.dtype.element_ty), mask=row < out)
