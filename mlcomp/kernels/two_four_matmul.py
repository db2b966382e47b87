r"""The product with a 2:4 sparse weight from its compressed form: values and places are read, zeros never.

Notation: as the reference. Column c of every block of four is a plane; in plane c a block holds its first value if
its place is c, or its second, or 0. So a program makes four dense tiles of the weight in registers and multiplies
each by the columns c, c + 4, c + 8, … of x, which are laid out together before. Both values of a block are one 32-bit
word, its places half a byte.
Source: Mishra et al. 2021, arXiv:2104.08378, section 3 and Figure 1 (the format; the tensor cores' own sparse product
is not reachable from Triton).   Syllabus: 3.07
"""

from typing import no_type_check

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import check_dtype
from mlcomp.context import isolated
from mlcomp.formats.two_four import TwoFour
from mlcomp.kernels.launch import INTERPRETED, check_devices, tl, triton

REFERENCE = "mlcomp.formats.two_four_matmul"
ROWS = 64  # of the weight in a program
# The interpreter gets bfloat16 arithmetic wrong without a word.
DTYPES = (torch.float16,) if INTERPRETED else (torch.float16, torch.bfloat16)


@isolated
def two_four_matmul(x: Float[Tensor, "tokens inp"], weight: TwoFour) -> Float[Tensor, "tokens out"]:
    """Return x · Wᵀ, accumulated in float32 and rounded once to the dtype of x.

    Args:
        x: (tokens, inp), float16 or (on a GPU) bfloat16; not modified.
        weight: in the dtype of x, inp a multiple of 8 (so that a row of places is whole bytes), on the same device.
    Raises:
        ValueError: x does not fit the weight, inp no multiple of 8, another device. TypeError: another dtype.
    Guarantee: relative error (root mean square) below 1e-3 in float16 and 5e-3 in bfloat16 against float32.
    Cost: out·inp·9/8 bytes, read once for up to 64 tokens, where dense takes out·inp·2.
    Deviation from the reference: NaN and infinity in x are not looked for, since an error would wait for the GPU.
    """
    check_devices(x=x, values=weight.values, metadata=weight.metadata)
    check_dtype("x", x.dtype, DTYPES)
    check_dtype("weight.values", weight.values.dtype, (x.dtype,))
    out, inp = weight.shape
    if x.ndim != 2 or x.shape[1] != inp:
        raise ValueError(f"x must be (tokens, {inp}), got {tuple(x.shape)}")
    if inp % 8:
        raise ValueError(f"the kernel takes rows of whole bytes of places: inp must be a multiple of 8, got {inp}")
    tokens = len(x)
    y = torch.empty(tokens, out, dtype=x.dtype, device=x.device)
    if not tokens:
        return y
    planes = x.view(tokens, inp // 4, 4).permute(2, 0, 1).contiguous()
    pairs = weight.values.contiguous().view(torch.int32)
    tile = min(64, max(16, triton.next_power_of_2(tokens)))
    blocks = inp // 4
    inner = 32
    _kernel[(triton.cdiv(out, ROWS), triton.cdiv(tokens, tile))](
        planes, pairs, weight.metadata, y, tokens, out, blocks, ROWS=ROWS, TOKENS=tile, BLOCKS=inner,
        WHOLE=blocks % inner == 0, num_warps=4, num_stages=3, enable_fp_fusion=True,
    )  # fmt: skip
    return y


@triton.jit
@no_type_check
def _kernel(
    planes_ptr, pairs_ptr, places_ptr, y_ptr, tokens, out, blocks, ROWS: tl.constexpr, TOKENS: tl.constexpr,
    BLOCKS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    dtype = planes_ptr.dtype.element_ty
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    lane = tl.arange(0, BLOCKS)
    near = tl.minimum(row, out - 1).to(tl.int64)[:, None] * blocks  # past the edge the last row is read again
    planes_ptr += token[None, :] * blocks + lane[:, None]
    total = tl.zeros((ROWS, TOKENS), tl.float32)
    for start in range(0, blocks, BLOCKS):
        live = token[None, :] < tokens
        place = start + lane[None, :]
        if WHOLE:
            pairs = tl.load(pairs_ptr + near + place)
            nibbles = tl.load(places_ptr + (near + place) // 2).to(tl.int32)
        else:
            live = live & (start + lane[:, None] < blocks)
            pairs = tl.load(pairs_ptr + near + place, mask=place < blocks, other=0)
            nibbles = tl.load(places_ptr + (near + place) // 2, mask=place < blocks, other=0).to(tl.int32)
        # Rows have an even number of blocks, so that the half of a byte is that of the place.
        nibbles = nibbles >> (4 * (place & 1))
        first, second = nibbles & 3, (nibbles >> 2) & 3
        low, high = pairs & 0xFFFF, (pairs >> 16) & 0xFFFF
        for column in tl.static_range(4):
            bits = tl.where(first == column, low, tl.where(second == column, high, 0))
            w = bits.to(tl.int16).to(dtype, bitcast=True)
            x = tl.load(planes_ptr + column * tokens * blocks + start, mask=live, other=0)
            total = tl.dot(w, x, total)
    y = y_ptr + token[None, :].to(tl.int64) * out + row[:, None]
    tl.store(y, total.to(dtype), mask=(token[None, :] < tokens) & (row[:, None] < out))
