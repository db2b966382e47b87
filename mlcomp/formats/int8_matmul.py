r"""The product of two int8 matrices with one scale for each row of both (vector-wise quantization).

Notation: X activations (tokens, inp) with codes $q_x$ and scales $s_x$ by row, W weight (out, inp) likewise;
$y_{tn} = s_{x,t}\, s_{w,n} \sum_k q_{x,tk}\, q_{w,nk}$: the sum is over whole numbers, so it is exact.
Source: Dettmers et al. 2022, arXiv:2208.07339, eq. (2)-(4).   Syllabus: 4.02
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import check_tensor, narrowed
from mlcomp.context import isolated
from mlcomp.formats.absmax_int8 import AbsmaxInt8


@isolated
def int8_matmul(
    x: AbsmaxInt8, weight: AbsmaxInt8, *, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "tokens out"]:
    """Return x · weightᵀ of two matrices that absmax_int8(…, dim=-1) quantized.

    Args:
        x: codes (tokens, inp), scale (tokens, 1).
        weight: codes (out, inp), scale (out, 1).
        dtype: of the result.
    Returns:
        (tokens, out): the exact sum of products, times one scale and then the other in float32, rounded to ``dtype``.
    Raises:
        ValueError: shapes do not match; a result beyond ``dtype``. TypeError: codes are not int8.
    Guarantee: the sum is exact for up to 133 000 inputs (127²·inp < 2³¹).
    """
    check_operands(x, weight)
    # float64 holds every sum exactly, and its product is much faster on a CPU than that of whole numbers.
    total = x.codes.double() @ weight.codes.double().T
    return narrowed(total.float() * x.scale.float() * weight.scale.float().T, dtype)


def check_operands(x: AbsmaxInt8, weight: AbsmaxInt8) -> None:
    """Raise unless both are int8 matrices of equal width with one scale a row, and no sum can overflow 32 bits."""
    for name, q in (("x", x), ("weight", weight)):
        if not isinstance(q, AbsmaxInt8):
            raise TypeError(f"{name} must come from absmax_int8, got {type(q).__name__}")
        check_tensor(f"{name}.codes", q.codes)
        check_tensor(f"{name}.scale", q.scale)
        if q.codes.dtype != torch.int8:
            raise TypeError(f"{name}.codes must be int8, got {q.codes.dtype}")
        if q.codes.ndim != 2 or q.scale.shape != (len(q.codes), 1):
            shapes = f"{tuple(q.codes.shape)} and {tuple(q.scale.shape)}"
            raise ValueError(f"{name} must have codes (rows, inp) and one scale a row (rows, 1), got {shapes}")
    inp = x.codes.shape[1]
    if weight.codes.shape[1] != inp:
        raise ValueError(f"x has {inp} inputs a row and weight {weight.codes.shape[1]}: they must agree")
    if inp * 127**2 >= 2**31:
        raise ValueError(f"sums of {inp} products can exceed 32 bits; at most {(2**31 - 1) // 127**2} inputs")
