r"""Decoding of additive codebooks: codes in, the 16- or 32-bit weight out, each once.

Notation: as the reference: $W_{n,\,jd:(j+1)d} = s_n \sum_c C_c[b_{njc}]$. The codebooks, a few kilobytes, stay in the
cache.
Source: Egiazarian et al. 2024, arXiv:2401.06118, section 3.   Syllabus: 1.13
"""

from typing import no_type_check

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import check_dtype
from mlcomp.context import isolated
from mlcomp.formats.additive_codebook import AdditiveCodes
from mlcomp.kernels.launch import check_devices, tl, triton

REFERENCE = "mlcomp.formats.additive_codebook.additive_decode"
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@isolated
def additive_decode(weight: AdditiveCodes) -> Float[Tensor, "out inp"]:
    """Return the weight (out, inp) in the dtype of the codebooks, summed in float32.

    Args:
        weight: 256 entries in each codebook, so that no code can lie outside; codebooks float16, bfloat16 or float32.
    Raises:
        ValueError: another number of entries, or different devices. TypeError: another dtype.
    Guarantee: equals the reference bit for bit in float32; in 16 bits, too, on a GPU.
    Cost: a byte a code read, inp values a row written.
    """
    check_operand(weight)
    out, groups, books = weight.codes.shape
    dim = weight.codebooks.shape[2]
    result = torch.empty(out, weight.inp, dtype=weight.codebooks.dtype, device=weight.codes.device)
    wide = triton.next_power_of_2(dim)
    block = max(1, min(triton.next_power_of_2(groups), 4096 // wide))
    _kernel[(out, triton.cdiv(groups, block))](
        weight.codes.contiguous(), weight.codebooks.contiguous(), weight.scale.float().contiguous(), result, groups,
        BOOKS=books, GROUPS=block, SIZE=dim, DIM=wide, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return result


def check_operand(weight: AdditiveCodes) -> None:
    """Raise unless the parts lie on one device, and all 256 codes have an entry of a dtype that kernels take."""
    check_devices(codes=weight.codes, codebooks=weight.codebooks, scale=weight.scale)
    check_dtype("codebooks", weight.codebooks.dtype, DTYPES)
    if weight.codebooks.shape[1] != 256:
        raise ValueError(f"the kernel needs 256 entries in each codebook, got {weight.codebooks.shape[1]}")


@triton.jit
@no_type_check
def _kernel(
    codes_ptr, books_ptr, scale_ptr, y_ptr, groups,
    BOOKS: tl.constexpr, GROUPS: tl.constexpr, SIZE: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    at = tl.arange(0, DIM)[None, :]
    total = tl.zeros((GROUPS, DIM), tl.float32)
    for book in tl.static_range(BOOKS):
        code = tl.load(codes_ptr + (row * groups + group) * BOOKS + book, mask=group < groups, other=0).to(tl.int32)
        entry = books_ptr + ((book * 256 + code) * SIZE)[:, None] + at
        total += tl.load(entry, mask=at < SIZE, other=0).to(tl.float32)
    total *= tl.load(scale_ptr + row)
    y = y_ptr + (row * groups + group)[:, None] * SIZE + at
    tl.store(y, total.to(y_ptr.dtype.element_ty), mask=(group[:, None] < groups) & (at < SIZE))
