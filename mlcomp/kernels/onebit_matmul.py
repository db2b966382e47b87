r"""The product with a weight of one bit, for few tokens: the signs are read once, as bits.

Notation: as the reference, $y = g \odot S(h \odot x)$. A word holds the signs of 32 neighbouring columns. Bit j of
all words meets the columns 32k + j, so h ⊙ x is laid out in 32 planes. A negative sign turns the sign bit of the
number: $s\,x$ is x with its first bit flipped where the sign's bit is 0. That is a shift and one logical operation,
and no conversion.
Source: Xu et al. 2024, arXiv:2402.11295, section 3.1, eq. (3).   Syllabus: 5.04
"""

from typing import no_type_check

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mlcomp.checks import check_dtype
from mlcomp.context import isolated
from mlcomp.formats.onebit_matmul import check_onebit
from mlcomp.formats.xnor_matmul import PackedSigns
from mlcomp.kernels.launch import INTERPRETED, check_devices, tl, triton
from mlcomp.kernels.xnor_matmul import words

REFERENCE = "mlcomp.formats.onebit_matmul.onebit_matmul"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@isolated
def onebit_matmul(
    x: Float[Tensor, "tokens inp"], signs: PackedSigns, rows: Float[Tensor, " out"], columns: Float[Tensor, " inp"]
) -> Float[Tensor, "tokens out"]:
    """Return rows ⊙ (S (columns ⊙ x)) for each token, summed in float32 and rounded once to the dtype of x.

    Args:
        x: (tokens, inp), float32, float16 or bfloat16; not modified.
        signs: (out, inp), from :func:`mlcomp.formats.pack_signs`. Copied first if a row is no whole number of 32-bit
            words.
        rows, columns: (out,) and (inp,), any float dtypes.
    Raises:
        ValueError: shapes that do not match, different devices. TypeError: not packed signs, another dtype.
    Guarantee: relative error (root mean square) below 1e-5 in float32, 1e-3 in float16, 5e-3 in bfloat16.
    Cost: out·inp/8 bytes; a shift, a logical operation and an addition for each sign and token. Made for one token;
        with many, unpacking once and an ordinary product is faster.
    """
    check_onebit(x, signs, rows, columns)
    check_devices(x=x, signs=signs.packed, rows=rows, columns=columns)
    check_dtype("x", x.dtype, DTYPES)
    tokens, out = len(x), len(rows)
    y = torch.empty(tokens, out, dtype=x.dtype, device=x.device)
    if not y.numel():
        return y
    packed = words(signs.packed)
    inner = packed.shape[1]
    scaled = F.pad(x.float() * columns.float(), (0, 32 * inner - x.shape[1]))
    planes = scaled.view(tokens, inner, 32).mT.contiguous()
    # One warp: the numbers that a lane loads are those that it adds, and nothing goes through shared memory.
    tile, deep = (64, min(128, triton.next_power_of_2(inner))) if INTERPRETED else (4, 128)
    _kernel[(triton.cdiv(out, tile), tokens)](
        planes, packed, rows.float(), y, out, inner, OUT=tile, WORDS=deep, WHOLE=inner % deep == 0, num_warps=1,
        num_stages=2,
    )  # fmt: skip
    return y


@triton.jit
@no_type_check
def _kernel(
    planes_ptr, signs_ptr, rows_ptr, y_ptr, out, inner, OUT: tl.constexpr, WORDS: tl.constexpr, WHOLE: tl.constexpr
):
    row = tl.program_id(0) * OUT + tl.arange(0, OUT)
    token = tl.program_id(1)
    word = tl.arange(0, WORDS)
    near = tl.minimum(row, out - 1)  # past the edge the last row is read again
    signs_ptr += near.to(tl.int64)[:, None] * inner + word[None, :]
    planes_ptr += token.to(tl.int64) * 32 * inner
    total = tl.zeros((OUT, WORDS), tl.float32)
    for start in range(0, inner, WORDS):
        live = start + word[None, :] < inner
        if WHOLE:
            minus = ~tl.load(signs_ptr + start)
        else:
            minus = ~tl.load(signs_ptr + start, mask=live, other=0)
        for bit in tl.static_range(32):
            if WHOLE:
                x = tl.load(planes_ptr + bit * inner + start + word[None, :])
            else:
                x = tl.load(planes_ptr + bit * inner + start + word[None, :], mask=live, other=0)
            flip = (minus << (31 - bit)) & -0x80000000
            total += (x.to(tl.int32, bitcast=True) ^ flip).to(tl.float32, bitcast=True)
    y = tl.sum(total, 1) * tl.load(rows_ptr + near)
    tl.store(y_ptr + token.to(tl.int64) * out + row, y.to(y_ptr.dtype.element_ty), mask=row < out)
