r"""Products of 16-bit activations with packed 4-bit weights; the weight is read once, at 4 bits.

Notation: as the reference: $y = x\,W^\top$, $W_{nk} = s_{n,g(k)}(q_{nk} - z_{n,g(k)})$, 8 codes in a 32-bit word.
The weight is the left operand of the tensor cores, which comes from registers, so that codes become numbers where
they are. That takes no conversion: with the bits of 1024 (float16) or 128 (bfloat16) above it, a code q is the number
1024 + q or 128 + q, and subtracting 1024 + z or 128 + z leaves $q - z$, all exact in 16 bits. The step scales the
float32 sum of a group.
Source: Frantar et al. 2024, arXiv:2408.11743; the bias trick: Kim et al. 2022, arXiv:2211.10017.   Syllabus: 1.03
"""

from typing import no_type_check

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import check_dtype
from mlcomp.context import isolated
from mlcomp.kernels.launch import INTERPRETED, check_devices, tl, triton
from mlcomp.quant.w4a16 import PLANES, PackedW4

REFERENCE = "mlcomp.quant.w4a16_matmul"
ROWS = 64  # of the weight in a program
# The interpreter gets bfloat16 arithmetic wrong without a word.
DTYPES = (torch.float16,) if INTERPRETED else (torch.float16, torch.bfloat16)


@isolated
def w4a16_matmul(x: Float[Tensor, "tokens inp"], weight: PackedW4) -> Float[Tensor, "tokens out"]:
    """Return x · Wᵀ, accumulated in float32 and rounded once to the dtype of x.

    Args:
        x: (tokens, inp), float16 or (on a GPU) bfloat16; not modified. Copied first if not contiguous.
        weight: from :func:`mlcomp.quant.pack_w4`, on the same device.
    Raises:
        ValueError: x does not fit the weight, or lies on another device. TypeError: another dtype.
    Guarantee: relative error (root mean square) below 1e-3 in float16 and 5e-3 in bfloat16 against float32.
    Cost: out·inp/2 bytes of codes and 4 bytes a group, read once for up to 128 tokens. Above some hundred tokens,
        dequantizing once and an ordinary product is faster.
    """
    check_devices(x=x, words=weight.words, grid=weight.grid)
    check_dtype("x", x.dtype, DTYPES)
    if x.ndim != 2 or x.shape[1] != weight.inp or len(x) == 0:
        raise ValueError(f"x must be (tokens, {weight.inp}) with at least one token, got {tuple(x.shape)}")
    tokens, inp = x.shape
    out, words = weight.words.shape
    y = torch.empty(tokens, out, dtype=x.dtype, device=x.device)
    # Planes in a row that share a group; their sum is scaled once.
    same = PLANES if len(weight.grid) == 1 else weight.group_size // weight.plane
    span = PLANES if same % PLANES == 0 else same if PLANES % same == 0 else 1
    tile = min(128, max(16, triton.next_power_of_2(tokens)))
    _kernel[(triton.cdiv(out, ROWS), triton.cdiv(tokens, tile))](
        x.contiguous(), weight.words, weight.grid, y, tokens, out, inp, words // weight.plane, len(weight.grid),
        GROUP=weight.group_size, SPAN=span, PLANE=weight.plane, WHOLE=inp % (PLANES * weight.plane) == 0, ROWS=ROWS,
        TOKENS=tile, BIAS=0x6400 if x.dtype == torch.float16 else 0x4300, num_warps=2 if tile == 16 else 4,
        num_stages=3, enable_fp_fusion=True,
    )  # fmt: skip
    return y


@triton.jit
@no_type_check
def _kernel(
    x_ptr, words_ptr, grid_ptr, y_ptr, tokens, out, inp, blocks, groups, GROUP: tl.constexpr, SPAN: tl.constexpr,
    PLANE: tl.constexpr, WHOLE: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    dtype = x_ptr.dtype.element_ty
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    lane = tl.arange(0, PLANE)
    # Past the edge the last row is read again; its products are not stored.
    near = tl.minimum(row, out - 1)
    words_ptr += near.to(tl.int64)[:, None] * blocks * PLANE + lane[None, :]
    x_ptr += token[None, :] * inp + lane[:, None]
    total = tl.zeros((ROWS, TOKENS), tl.float32)
    for block in range(0, blocks):
        words = tl.load(words_ptr + block * PLANE)
        part = tl.zeros((ROWS, TOKENS), tl.float32)
        for plane in tl.static_range(8):
            column = block * (8 * PLANE) + plane * PLANE
            if plane % SPAN == 0:
                grid = tl.load(grid_ptr + tl.minimum(column // GROUP, groups - 1) * out + near)
                step = (grid & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
                zero = ((grid >> 16) | BIAS).to(tl.int16).to(dtype, bitcast=True)
                part = tl.zeros((ROWS, TOKENS), tl.float32)
            code = (((words >> (4 * plane)) & 15) | BIAS).to(tl.int16).to(dtype, bitcast=True) - zero[:, None]
            live = token[None, :] < tokens
            if not WHOLE:
                live = live & (column + lane[:, None] < inp)
            x = tl.load(x_ptr + column, mask=live, other=0)
            part = tl.dot(code, x, part)
            if plane % SPAN == SPAN - 1:
                total += part * step[:, None]
    y = y_ptr + token[None, :].to(tl.int64) * out + row[:, None]
    tl.store(y, total.to(dtype), mask=(token[None, :] < tokens) & (row[:, None] < out))
