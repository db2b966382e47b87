r"""The product of a vector with a weight of additive codebooks, by look-ups.

Notation: as the reference. The table $T_{jc}[b] = C_c[b] \cdot x_j$ of all entries with all pieces of x is one small
matrix product, left to the library; then $y_n = s_n \sum_{jc} T_{jc}[b_{njc}]$. A program takes SLICE columns (j, c)
of many rows, so that its part of the table, one kilobyte a column, stays in the first-level cache; the slices' sums
are added in a fixed order, so that the result is the same every time.
Source: Egiazarian et al. 2024, arXiv:2401.06118, section 4.   Syllabus: 1.13
"""

from typing import no_type_check

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.formats.additive_codebook import AdditiveCodes
from mlcomp.kernels.additive_decode import check_operand
from mlcomp.kernels.launch import check_devices, check_dtype, tl, triton

REFERENCE = "mlcomp.formats.additive_codebook.additive_matvec"
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
SLICE = 32  # columns of the table in one program: 32 KB


def additive_matvec(x: Float[Tensor, " inp"], weight: AdditiveCodes) -> Float[Tensor, " out"]:
    """Return W x without decoding W.

    Args:
        x: (inp,), float16, bfloat16 or float32; not modified.
        weight: 256 entries in each codebook; codebooks float16, bfloat16 or float32.
    Returns:
        (out,) in the dtype of x, summed in float32.
    Raises:
        ValueError: x does not fit, another number of entries, different devices. TypeError: another dtype.
    Guarantee: relative error below 1e-5 in float32 (with exact float32 products: torch's tf32 switch is off).
    Cost: out·groups·books bytes of codes, and a table of groups·books kilobytes.
    """
    check_operand(weight)
    check_devices(x=x, codes=weight.codes)
    check_dtype("x", x, DTYPES)
    if x.shape != (weight.inp,):
        raise ValueError(f"x must be ({weight.inp},), got {tuple(x.shape)}")
    out, groups, books = weight.codes.shape
    columns = groups * books
    pieces = x.float().reshape(groups, -1)
    table = pieces @ weight.codebooks.float().reshape(books * 256, -1).T
    slices = triton.cdiv(columns, SLICE)
    part = torch.empty(slices, out, dtype=torch.float32, device=x.device)
    rows, block = 256, 512
    _kernel[(slices, triton.cdiv(out, block))](
        table, weight.codes.contiguous(), part, out, columns,
        COLUMNS=SLICE, ROWS=rows, BLOCK=block, num_warps=8, enable_fp_fusion=False,
    )  # fmt: skip
    return (part.sum(0) * weight.scale.float()).to(x.dtype)


@triton.jit
@no_type_check
def _kernel(
    table_ptr, codes_ptr, part_ptr, out, columns, COLUMNS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    for start in range(0, BLOCK, ROWS):
        row = tl.program_id(1) * BLOCK + start + tl.arange(0, ROWS)
        live = (row[:, None] < out) & (column[None, :] < columns)
        code = tl.load(codes_ptr + row.to(tl.int64)[:, None] * columns + column[None, :], mask=live, other=0)
        value = tl.load(table_ptr + column[None, :] * 256 + code.to(tl.int32), mask=live, other=0)
        tl.store(part_ptr + tl.program_id(0) * out + row, tl.sum(value, 1), mask=row < out)
