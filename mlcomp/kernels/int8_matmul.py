r"""The int8 product on tensor cores, with both scales applied before the result is written.

Notation: as the reference, $y_{tn} = s_{x,t}\, s_{w,n} \sum_k q_{x,tk}\, q_{w,nk}$.
The weight is the left operand: with few tokens its 64 rows fill the tensor core's tile, and tokens, padded to 16, are
its narrow side. The 32-bit sums never go to memory.
Source: Dettmers et al. 2022, arXiv:2208.07339, section 3.1.   Syllabus: 4.02
"""

from typing import no_type_check

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import check_dtype
from mlcomp.context import isolated
from mlcomp.formats.absmax_int8 import AbsmaxInt8
from mlcomp.formats.int8_matmul import check_operands
from mlcomp.kernels.launch import check_devices, tl, triton

REFERENCE = "mlcomp.formats.int8_matmul.int8_matmul"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@isolated
def int8_matmul(
    x: AbsmaxInt8, weight: AbsmaxInt8, *, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "tokens out"]:
    """Return x · weightᵀ of two matrices that absmax_int8(…, dim=-1) quantized.

    Args:
        x: codes (tokens, inp), scale (tokens, 1) float32. weight: codes (out, inp), scale (out, 1) float32. Copied
            first if not contiguous.
        dtype: of the result: float32, float16 or bfloat16.
    Raises:
        ValueError: shapes do not match, or different devices. TypeError: another dtype.
    Guarantee: equals the reference bit for bit in float32.
    Cost: 2·tokens·out·inp int8 operations; out·inp + tokens·inp bytes read, one result written.
    """
    check_devices(x_codes=x.codes, x_scale=x.scale, weight_codes=weight.codes, weight_scale=weight.scale)
    check_operands(x, weight)
    check_dtype("x.scale", x.scale.dtype, (torch.float32,))
    check_dtype("weight.scale", weight.scale.dtype, (torch.float32,))
    check_dtype("dtype", dtype, DTYPES)
    (tokens, inp), out = x.codes.shape, len(weight.codes)
    y = torch.empty(tokens, out, dtype=dtype, device=x.codes.device)
    sizes = tile_sizes(tokens, inp)
    grid = (triton.cdiv(out, sizes["ROWS"]) * triton.cdiv(tokens, sizes["TOKENS"]),)
    _kernel[grid](
        x.codes.contiguous(), x.scale.contiguous(), weight.codes.contiguous(), weight.scale.contiguous(), y,
        tokens, out, inp, enable_fp_fusion=False, **sizes,
    )  # fmt: skip
    return y


def tile_sizes(tokens: int, inp: int) -> dict[str, int | bool]:
    """Return rows of the weight and tokens of a program, columns read at a time, warps and stages."""
    if tokens <= 64:
        # Reading the weight is the work: narrow tiles make many programs, long ones keep many bytes in flight.
        rows, tile, inner, warps = 64, max(16, triton.next_power_of_2(tokens)), 256, 4
    else:
        rows, tile, inner, warps = 128, 128, 128, 8
    return {
        "ROWS": rows, "TOKENS": tile, "INNER": inner, "WHOLE": inp % inner == 0, "num_warps": warps, "num_stages": 3
    }  # fmt: skip


@triton.jit
@no_type_check
def _kernel(
    x_ptr, x_scale_ptr, w_ptr, w_scale_ptr, y_ptr, tokens, out, inp,
    ROWS: tl.constexpr, TOKENS: tl.constexpr, INNER: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    # Programs of 8 weight tiles visit the same tokens one after the other, so that both stay in the cache.
    wide = tl.cdiv(tokens, TOKENS)
    tall = tl.cdiv(out, ROWS)
    first = tl.program_id(0) // (8 * wide) * 8
    height = tl.minimum(tall - first, 8)
    row = (first + tl.program_id(0) % (8 * wide) % height) * ROWS + tl.arange(0, ROWS)
    token = (tl.program_id(0) % (8 * wide) // height) * TOKENS + tl.arange(0, TOKENS)
    y = scaled_product(
        x_ptr, x_scale_ptr, w_ptr, w_scale_ptr, row, token, tokens, out, inp, ROWS, TOKENS, INNER, WHOLE
    )
    y_ptr += token.to(tl.int64)[None, :] * out + row[:, None]
    tl.store(y_ptr, y.to(y_ptr.dtype.element_ty), mask=(token[None, :] < tokens) & (row[:, None] < out))


@triton.jit
@no_type_check
def scaled_product(
    x_ptr, x_scale_ptr, w_ptr, w_scale_ptr, row, token, tokens, out, inp, ROWS: tl.constexpr, TOKENS: tl.constexpr,
    INNER: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Return the tile (row, token) of the product in float32, both scales applied."""
    # Past the edge the last row is read again; its products are not stored. Tokens are masked instead: with few of
    # them, reading one again and again would cost as much as the weight.
    w_ptr += tl.minimum(row, out - 1).to(tl.int64)[:, None] * inp
    x_ptr += token.to(tl.int64)[None, :] * inp
    live = token[None, :] < tokens
    inner = tl.arange(0, INNER)
    total = tl.zeros((ROWS, TOKENS), tl.int32)
    for start in range(0, inp, INNER):
        column = start + inner
        if WHOLE:
            w = tl.load(w_ptr + column[None, :])
            x = tl.load(x_ptr + column[:, None], mask=live, other=0)
        else:
            w = tl.load(w_ptr + column[None, :], mask=column[None, :] < inp, other=0)
            x = tl.load(x_ptr + column[:, None], mask=live & (column[:, None] < inp), other=0)
        total = tl.dot(w, x, total, out_dtype=tl.int32)
    x_scale = tl.load(x_scale_ptr + token, mask=token < tokens, other=0)
    w_scale = tl.load(w_scale_ptr + row, mask=row < out, other=0)
    return total.to(tl.float32) * x_scale[None, :] * w_scale[:, None]
