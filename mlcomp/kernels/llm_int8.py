r"""LLM.int8() on tensor cores: integer product and outlier columns are added before the result is written.

Notation: as the reference, $y_{tn} = \sum_{k \in O} X_{tk} W_{nk} + s_{x,t}\, s_{w,n} \sum_{k \notin O} q_{x,tk}\,
q_{w,nk}$. The outlier columns of both are gathered first; their product, in 16 bits with float32 sums, goes to the
same registers as the scaled integer sums. There may be none of them, or many.
Source: Dettmers et al. 2022, arXiv:2208.07339, eq. (8).   Syllabus: 4.05
"""

from typing import no_type_check

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import check_dtype
from mlcomp.context import isolated
from mlcomp.formats.absmax_int8 import AbsmaxInt8
from mlcomp.formats.int8_matmul import check_operands
from mlcomp.kernels.absmax_int8 import absmax_int8
from mlcomp.kernels.int8_matmul import scaled_product, tile_sizes
from mlcomp.kernels.launch import INTERPRETED, check_devices, tl, triton
from mlcomp.quant.post_training.llm_int8 import outlier_columns

REFERENCE = "mlcomp.quant.llm_int8"
# The interpreter gets bfloat16 arithmetic wrong without a word.
DTYPES = (torch.float16,) if INTERPRETED else (torch.float16, torch.bfloat16)


@isolated
def llm_int8(
    x: Float[Tensor, "tokens inp"], weight: Float[Tensor, "out inp"] | AbsmaxInt8, *, threshold: float | int = 6.0
) -> Float[Tensor, "tokens out"]:
    """Return x · weightᵀ, outlier columns in 16 bits and the rest in 8-bit integers, in the dtype of x.

    Args:
        x: (tokens, inp), float16 or (on a GPU) bfloat16; not modified.
        weight: what ``absmax_int8(weight, -1)`` made, from which outlier columns are decoded; or (out, inp) in the
            dtype of x, which is quantized in every call.
        threshold: α, [units of x]; ``math.inf``: everything in integers.
    Raises:
        ValueError: malformed x or weight, a threshold that is not positive, different devices. TypeError: another
            dtype.
    Guarantee: as the reference, but for the rounding of decoded outlier columns to the dtype of x: relative error
        (root mean square) against it below 1e-3 in float16 and 5e-3 in bfloat16.
    Cost: the number of outlier columns is asked for, which waits for the GPU once. Then out·inp bytes of codes and,
        where there are outliers, a copy of their columns.
    """
    stored = weight if isinstance(weight, AbsmaxInt8) else absmax_int8(weight, -1)
    check_devices(x=x, codes=stored.codes, scale=stored.scale)
    check_dtype("x", x.dtype, DTYPES)
    columns = outlier_columns(x, threshold=threshold)
    quantized = absmax_int8(x.index_fill(1, columns, 0), -1)
    check_operands(quantized, stored)
    if isinstance(weight, AbsmaxInt8):
        outlying = (stored.codes[:, columns].float() * stored.scale.float()).to(x.dtype)
    else:
        check_dtype("weight", weight.dtype, (x.dtype,))
        outlying = weight[:, columns].contiguous()
    (tokens, inp), out = x.shape, len(stored.codes)
    y = torch.empty(tokens, out, dtype=x.dtype, device=x.device)
    sizes = tile_sizes(tokens, inp)
    _kernel[(triton.cdiv(out, sizes["ROWS"]), triton.cdiv(tokens, sizes["TOKENS"]))](
        quantized.codes, quantized.scale, stored.codes.contiguous(), stored.scale.float().contiguous(),
        x[:, columns].contiguous(), outlying, y, tokens, out, inp, len(columns), enable_fp_fusion=False, **sizes,
    )  # fmt: skip
    return y


@triton.jit
@no_type_check
def _kernel(
    x_ptr, x_scale_ptr, w_ptr, w_scale_ptr, x_out_ptr, w_out_ptr, y_ptr, tokens, out, inp, outliers,
    ROWS: tl.constexpr, TOKENS: tl.constexpr, INNER: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    near = tl.minimum(row, out - 1).to(tl.int64)[:, None]  # past the edge the last row is read again
    far = token.to(tl.int64)[None, :]
    live = token[None, :] < tokens
    y = scaled_product(
        x_ptr, x_scale_ptr, w_ptr, w_scale_ptr, row, token, tokens, out, inp, ROWS, TOKENS, INNER, WHOLE
    )
    some = tl.arange(0, 32)
    for start in range(0, outliers, 32):
        column = start + some
        w = tl.load(w_out_ptr + near * outliers + column[None, :], mask=column[None, :] < outliers, other=0)
        x = tl.load(x_out_ptr + far * outliers + column[:, None], mask=live & (column[:, None] < outliers), other=0)
        y = tl.dot(w, x, y)
    tl.store(y_ptr + far * out + row[:, None], y.to(y_ptr.dtype.element_ty), mask=live & (row[:, None] < out))
