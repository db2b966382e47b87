r"""Products of 16-bit activations with packed 4-bit weights; the weight is read once, at 4 bits.

Notation: as the reference: $y = x\,W^\top$, $W_{nk} = s_{n,g(k)}(q_{nk} - z_{n,g(k)})$, 8 codes in a 32-bit word.
For one token the work is reading W, so threads multiply and add in float32. A code becomes a number without a
conversion: ``0x4B000000 | q`` is the float $2^{23} + q$, and subtracting $2^{23}$ (exact) leaves q. The zero code
comes in once a group, $\sum_k (q_k - z) x_k = \sum_k q_k x_k - z \sum_k x_k$.
For more tokens tensor cores multiply $q - z$, exact in 16 bits, and the step scales the float32 sum of a group.
Source: Frantar et al. 2024, arXiv:2408.11743; the bias trick: Kim et al. 2022, arXiv:2211.10017.   Syllabus: 1.03
"""

from typing import no_type_check

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.kernels.launch import INTERPRETED, check_devices, check_dtype, tl, triton
from mlcomp.quant.w4a16 import PackedW4

REFERENCE = "mlcomp.quant.w4a16.w4a16_matmul"
# The interpreter gets bfloat16 arithmetic wrong without a word.
DTYPES = (torch.float16,) if INTERPRETED else (torch.float16, torch.bfloat16)


def w4a16_matmul(x: Float[Tensor, "tokens inp"], weight: PackedW4) -> Float[Tensor, "tokens out"]:
    """Return x · Wᵀ, accumulated in float32 and rounded once to the dtype of x.

    Args:
        x: (tokens, inp), float16 or (on a GPU) bfloat16; not modified. Copied first if not contiguous.
        weight: from :func:`mlcomp.quant.pack_w4`, on the same device.
    Raises:
        ValueError: x does not fit the weight, or lies on another device. TypeError: another dtype.
    Guarantee: relative error (root mean square) below 1e-3 in float16 and 5e-3 in bfloat16 against float32.
    Cost: out·inp/2 bytes of codes and 3 bytes a group, read once for up to 16 tokens. Above some hundred tokens,
        dequantizing once and an ordinary product is faster.
    """
    check_devices(x=x, words=weight.words, step=weight.step, zero=weight.zero)
    check_dtype("x", x, DTYPES)
    if x.ndim != 2 or x.shape[1] != weight.inp or len(x) == 0:
        raise ValueError(f"x must be (tokens, {weight.inp}) with at least one token, got {tuple(x.shape)}")
    x = x.contiguous()
    tokens, inp = x.shape
    out, words = weight.words.shape
    groups = weight.step.shape[1]
    y = torch.empty(tokens, out, dtype=x.dtype, device=x.device)
    # Groups of whole blocks scale a block's sum; smaller ones scale each plane of 16 columns.
    whole = groups == 1 or weight.group_size % 128 == 0
    tensors = (x, weight.words, weight.step, weight.zero, y)
    sizes = (out, inp, words // 16, groups)
    if tokens == 1:
        rows, blocks = 4, min(32, triton.next_power_of_2(words // 16))
        _matvec[(triton.cdiv(out, rows),)](
            *tensors, *sizes, GROUP=weight.group_size, WHOLE=whole, ROWS=rows, BLOCKS=blocks, num_warps=4,
            enable_fp_fusion=True,
        )  # fmt: skip
    else:
        tile = min(128, max(16, triton.next_power_of_2(tokens)))
        rows = 64
        _matmul[(triton.cdiv(out, rows), triton.cdiv(tokens, tile))](
            *tensors, tokens, *sizes, GROUP=weight.group_size, WHOLE=whole, ROWS=rows, TOKENS=tile,
            BIAS=0x6400 if x.dtype == torch.float16 else 0x4300, num_warps=4, num_stages=4, enable_fp_fusion=True,
        )  # fmt: skip
    return y


@triton.jit
@no_type_check
def _matvec(
    x_ptr, words_ptr, step_ptr, zero_ptr, y_ptr, out, inp, blocks, groups,
    GROUP: tl.constexpr, WHOLE: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None, None]
    lane = tl.arange(0, 16)[None, None, :]
    flat_row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros((ROWS, BLOCKS), tl.float32)
    for start in range(0, blocks, BLOCKS):
        block = (start + tl.arange(0, BLOCKS))[None, :, None]
        inside = (row < out) & (block < blocks)
        words = tl.load(words_ptr + (row * blocks + block) * 16 + lane, mask=inside, other=0)
        part = tl.zeros((ROWS, BLOCKS, 16), tl.float32)
        sum_x = tl.zeros((1, BLOCKS, 16), tl.float32)
        for plane in tl.static_range(8):
            # A mask leaves the code at its place in the word, 2⁴ᵖ times too large, which x makes up for: the shift
            # that would be needed for each code is needed once, because 23 bits of mantissa hold five codes.
            if plane == 5:
                words = words >> 20
            place = 1 << (4 * (plane % 5))
            column = block * 128 + plane * 16
            x = tl.load(x_ptr + column + lane, mask=column + lane < inp, other=0).to(tl.float32)
            sum_x += x
            code = ((words & (15 * place)) | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0
            part += code * (x * (1.0 / place))
            if plane == 7 or not WHOLE:
                flat = start + tl.arange(0, BLOCKS)[None, :]
                group = flat_row[:, None] * groups + tl.minimum((flat * 128 + plane * 16) // GROUP, groups - 1)
                live = (flat_row[:, None] < out) & (flat < blocks)
                step = tl.load(step_ptr + group, mask=live, other=0).to(tl.float32)
                zero = tl.load(zero_ptr + group, mask=live, other=0).to(tl.float32)
                total += (tl.sum(part, 2) - zero * tl.sum(sum_x, 2)) * step
                part = tl.zeros((ROWS, BLOCKS, 16), tl.float32)
                sum_x = tl.zeros((1, BLOCKS, 16), tl.float32)
    y = tl.sum(total, 1).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + flat_row, y, mask=flat_row < out)


@triton.jit
@no_type_check
def _matmul(
    x_ptr, words_ptr, step_ptr, zero_ptr, y_ptr, tokens, out, inp, blocks, groups,
    GROUP: tl.constexpr, WHOLE: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    dtype = x_ptr.dtype.element_ty
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    lane = tl.arange(0, 16)
    total = tl.zeros((ROWS, TOKENS), tl.float32)
    for block in range(0, blocks):
        words = tl.load(words_ptr + (row[:, None] * blocks + block) * 16 + lane, mask=row[:, None] < out, other=0)
        part = tl.zeros((ROWS, TOKENS), tl.float32)
        for plane in tl.static_range(8):
            column = block * 128 + plane * 16
            if plane == 0 or not WHOLE:
                group = row * groups + tl.minimum(column // GROUP, groups - 1)
                step = tl.load(step_ptr + group, mask=row < out, other=0).to(tl.float32)
                zero = tl.load(zero_ptr + group, mask=row < out, other=0)
                bias = (zero.to(tl.int16) | BIAS).to(dtype, bitcast=True)
            # 1024 + q in float16, 128 + q in bfloat16: whole numbers that the mantissa holds exactly.
            code = ((words >> (4 * plane)) & 15).to(tl.int16) | BIAS
            code = code.to(dtype, bitcast=True) - bias[:, None]
            x = tl.load(
                x_ptr + token[None, :] * inp + (column + lane)[:, None],
                mask=(token[None, :] < tokens) & ((column + lane)[:, None] < inp),
                other=0,
            )
            if WHOLE:
                part = tl.dot(code, x, part)
            else:
                total += tl.dot(code, x) * step[:, None]
        if WHOLE:
            total += part * step[:, None]
    y = y_ptr + token[None, :] * out + row[:, None]
    tl.store(y, total.to(dtype), mask=(token[None, :] < tokens) & (row[:, None] < out))
