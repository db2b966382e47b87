r"""The product with doubly quantized 4-bit codes; the weight is read once, at 4 bits and an eighth.

Notation: as the reference, $\hat w_i = (\bar m + M_s u_{r_b})\, v_{q_i}$. A byte holds two neighbouring columns, so
the even and the odd columns of x meet the high and the low halves in two products. A code becomes a number by a
look-up among 16 levels, which are not equally spaced; its scale is looked up among 256, and multiplies the float32
sum of its block.
Source: Dettmers et al. 2023, arXiv:2305.14314, section 3.   Syllabus: 4.08
"""

from typing import no_type_check

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mlcomp.checks import check_dtype
from mlcomp.context import isolated
from mlcomp.kernels.launch import INTERPRETED, check_devices, tl, triton
from mlcomp.quant.scalar.blockwise import data_type_levels
from mlcomp.quant.scalar.double_quantization import scale_levels
from mlcomp.quant.scalar.nf4_matmul import PackedNF4, check_packed_nf4

REFERENCE = "mlcomp.quant.nf4_matmul"
ROWS = 64  # of the weight in a program
# The interpreter gets bfloat16 arithmetic wrong without a word.
DTYPES = (torch.float16,) if INTERPRETED else (torch.float16, torch.bfloat16)


@isolated
def nf4_matmul(x: Float[Tensor, "tokens inp"], weight: PackedNF4) -> Float[Tensor, "tokens out"]:
    """Return x · Ŵᵀ, accumulated in float32 and rounded once to the dtype of x.

    Args:
        x: (tokens, inp), float16 or (on a GPU) bfloat16; not modified.
        weight: from :func:`mlcomp.quant.pack_nf4`, in blocks of a multiple of 32 columns, on the same device.
    Raises:
        ValueError: x does not fit the weight, other blocks, another device. TypeError: another dtype, not packed.
    Guarantee: relative error (root mean square) below 1e-3 in float16 and 5e-3 in bfloat16 against float32, where the
        levels, too, are rounded to the dtype of x.
    Cost: out·inp/2 bytes of codes and a byte a block, read once for up to 64 tokens. Above some hundred tokens,
        dequantizing once and an ordinary product is faster.
    """
    check_packed_nf4(x, weight)
    check_devices(x=x, codes=weight.codes, scale_codes=weight.scale_codes, largest=weight.largest)
    check_dtype("x", x.dtype, DTYPES)
    if weight.block_size % 32:
        raise ValueError(f"the kernel takes blocks of 32 columns or a multiple, got {weight.block_size}")
    tokens, inp = x.shape
    out = len(weight.codes)
    y = torch.empty(tokens, out, dtype=x.dtype, device=x.device)
    if not tokens:
        return y
    levels = data_type_levels(weight.data_type, 4).to(x.device, x.dtype)
    scales = scale_levels(weight.scale_type).to(x.device)
    halves = torch.stack((x[:, 0::2], x[:, 1::2]))  # even and odd columns, each contiguous
    tile = min(64, max(16, triton.next_power_of_2(tokens)))
    inner = 64 if weight.block_size % 128 == 0 else 32 if weight.block_size % 64 == 0 else 16
    _kernel[(triton.cdiv(out, ROWS), triton.cdiv(tokens, tile))](
        halves, weight.codes.contiguous(), F.pad(levels, (0, 16 - len(levels))), weight.scale_codes, scales,
        weight.largest, y, weight.mean, tokens, out, inp // 2, inp // weight.block_size, weight.scale_block,
        BLOCK=weight.block_size // 2, INNER=inner, ROWS=ROWS, TOKENS=tile, num_warps=4, num_stages=3,
        enable_fp_fusion=True,
    )  # fmt: skip
    return y


@triton.jit
@no_type_check
def _kernel(
    x_ptr, codes_ptr, levels_ptr, scale_codes_ptr, scales_ptr, largest_ptr, y_ptr, mean, tokens, out, half, blocks,
    scale_block, BLOCK: tl.constexpr, INNER: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    lane = tl.arange(0, INNER)
    near = tl.minimum(row, out - 1).to(tl.int64)  # past the edge the last row is read again
    codes_ptr += near[:, None] * half + lane[None, :]
    live = token[None, :] < tokens
    x_ptr += token[None, :] * half + lane[:, None]
    levels = tl.load(levels_ptr + tl.arange(0, 16))
    total = tl.zeros((ROWS, TOKENS), tl.float32)
    for block in range(0, blocks):
        part = tl.zeros((ROWS, TOKENS), tl.float32)
        for step in tl.static_range(BLOCK // INNER):
            column = block * BLOCK + step * INNER
            codes = tl.load(codes_ptr + column).to(tl.int32)
            even = tl.load(x_ptr + column, mask=live, other=0)
            odd = tl.load(x_ptr + tokens * half + column, mask=live, other=0)
            part = tl.dot(_look_up(levels, codes >> 4, ROWS, INNER), even, part)
            part = tl.dot(_look_up(levels, codes & 15, ROWS, INNER), odd, part)
        place = near * blocks + block
        scale = tl.load(scales_ptr + tl.load(scale_codes_ptr + place).to(tl.int32))
        scale = scale * tl.load(largest_ptr + place // scale_block) + mean
        total += part * scale[:, None]
    y = y_ptr + token[None, :].to(tl.int64) * out + row[:, None]
    tl.store(y, total.to(y_ptr.dtype.element_ty), mask=live & (row[:, None] < out))


@triton.jit
@no_type_check
def _look_up(levels, codes, ROWS: tl.constexpr, INNER: tl.constexpr):
    return tl.gather(levels, codes.reshape(ROWS * INNER), 0).reshape(ROWS, INNER)
