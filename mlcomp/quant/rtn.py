"""Round-to-nearest weight quantization, one affine grid per tensor, row or group of columns.

Notation: W weight, s step, z zero code, b bits, g group size.
Source: Jacob et al. 2018, arXiv:1712.05877, eq. (1).   Syllabus: 1.02, 1.03
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import check_bits, check_group_size, check_weight
from mlcomp.context import isolated
from mlcomp.quant.grid import fit_grid
from mlcomp.quant.quantized import Quantized


@isolated
def rtn(
    weight: Float[Tensor, "out inp"],
    *,
    bits: int,
    group_size: int | None = None,
    per_tensor: bool = False,
    symmetric: bool = False,
    clip: str = "minmax",
    scale_dtype: torch.dtype | None = None,
) -> Quantized:
    r"""Round each weight to the nearest point of its grid.

    $q = \mathrm{clip}(\mathrm{round}(w/s) + z, 0, 2^b - 1)$

    Args:
        weight: (out, inp), any float dtype, computed in float32 (float64 stays); not modified.
        bits: bits per code, 1 to 8.
        group_size: columns that share a step; must divide ``inp``. None: the whole row.
        per_tensor: one grid for the whole matrix; excludes ``group_size``.
        symmetric: zero code fixed at 2^(b−1), not stored.
        clip: "minmax" or "mse" (see :func:`mlcomp.quant.fit_grid`).
        scale_dtype: dtype that the steps are stored in, float32, float16 or bfloat16; the codes are those of the
            rounded steps. None: float32 (float64 for a float64 weight).
    Returns:
        codes (out, inp) uint8; step [weight units] and zero, one per group.
    Raises:
        ValueError: bits outside 1..8, group_size does not divide inp, NaN or inf in weight, a step beyond
            scale_dtype.
    Guarantee: |W − dequantize| ≤ step/2 up to float rounding, with clip="minmax".
    """
    weight = check_weight(weight)
    check_bits(bits)
    check_group_size(group_size, weight.shape[1])
    if per_tensor and group_size is not None:
        raise ValueError(f"per_tensor shares one grid over the matrix; group_size={group_size} contradicts it")
    rows = weight.reshape(1, -1) if per_tensor else weight
    grid = fit_grid(rows, bits=bits, group_size=group_size, symmetric=symmetric, clip=clip, scale_dtype=scale_dtype)
    return grid.quantized(grid.encode(weight))
