r"""OBQ with every row in its own program: all rows at once, no step waits for another row.

Notation: W weight, B the inverse Hessian of a row over the weights not yet rounded, quant(w) the nearest grid value.
See ``mlcomp.kernels.row_inverse`` for the column of B that a step needs.
Source: Frantar, Singh, Alistarh 2022, arXiv:2208.11580, section 5, algorithm 3 (algorithm 2 of the lecture).
Syllabus: 2.08
"""

from typing import no_type_check

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import check_bits, check_choice, check_dtype, check_group_size, check_hessian, check_weight
from mlcomp.context import isolated
from mlcomp.kernels.launch import check_devices, tl, triton
from mlcomp.kernels.row_inverse import current_column, launch_sizes, pick, scratch
from mlcomp.layerwise.hessian import damped_hessian, inverse_hessian
from mlcomp.quant.grid import CLIPS, fit_grid
from mlcomp.quant.quantized import Quantized

REFERENCE = "mlcomp.obs.obq"


@isolated
def obq(
    weight: Float[Tensor, "out inp"],
    hessian: Float[Tensor, "inp inp"],
    *,
    bits: int,
    symmetric: bool = False,
    group_size: int | None = None,
    clip: str = "minmax",
    scale_dtype: torch.dtype | None = None,
    outliers: bool = True,
    damp: float = 0.0,
    dtype: torch.dtype = torch.float64,
    max_bytes: int = 2**30,
) -> Quantized:
    r"""Round in each row next the weight that costs least, and move the others of the row.

    $p = \arg\min_p (\mathrm{quant}(w_p) - w_p)^2/B_{pp}$, then
    $w \leftarrow w - \frac{w_p - \mathrm{quant}(w_p)}{B_{pp}} B_{:,p}$.

    Args:
        weight, hessian, bits, symmetric, group_size, clip, scale_dtype, outliers, damp: as the reference, with its
            greedy order.
        dtype: that a row is worked on in: float64 as the reference, or float32.
        max_bytes: bound on the working memory: it limits how many rows run at once, not the result.
    Returns:
        codes (out, inp) uint8; step and zero, one per row and group.
    Raises:
        ValueError: malformed weight, H or option; H + λI singular; max_bytes too small for one row; wrong device.
    Guarantee: in float64 the reference's codes, unless two costs tie up to rounding.
    Cost: per row about inp³ FLOPs, and inp² numbers of memory for each program.
    """
    check_devices(weight=weight, hessian=hessian)
    weight = check_weight(weight)
    check_bits(bits)
    out, inp = weight.shape
    check_group_size(group_size, inp)
    hessian = check_hessian(hessian, inp)
    check_choice("clip", clip, CLIPS)
    check_dtype("dtype", dtype, (torch.float32, torch.float64))
    inverse = inverse_hessian(hessian, damp=damp)
    live = weight.to(torch.promote_types(weight.dtype, torch.float32)).masked_fill(inverse.dead, 0)
    size = group_size or inp
    grid = fit_grid(live, bits=bits, group_size=size, symmetric=symmetric, clip=clip, scale_dtype=scale_dtype)
    vectors = scratch(out, inp, inp, dtype, max_bytes, weight.device)
    floor = (1 / damped_hessian(hessian, damp=damp).matrix.diagonal()).to(dtype)
    codes = torch.empty(out, inp, dtype=torch.uint8, device=weight.device)
    _kernel[(len(vectors),)](
        live.to(dtype).contiguous(), codes, grid.step.to(dtype).contiguous(), grid.zero.to(dtype).contiguous(),
        inverse.inverse.to(dtype).contiguous(), floor, vectors, out, inp, size, 2**bits - 1,
        OUTLIERS=outliers, enable_fp_fusion=False, **launch_sizes(inp, dtype),
    )  # fmt: skip
    return grid.quantized(codes)


@triton.jit
@no_type_check
def nearest(w, step, zero, top):
    """Return the nearest code as a float; ties to even, as torch.round."""
    # Adding 1.5·2²³ (1.5·2⁵² in float64) pushes the fraction out of the mantissa. Far off the grid, where that would
    # not hold, any large number gives the same end of the grid.
    if w.dtype == tl.float64:
        ratio = tl.minimum(tl.maximum(w / step, -1e6), 1e6)
        whole = (ratio + 6755399441055744.0) - 6755399441055744.0
    else:
        ratio = tl.minimum(tl.maximum(tl.div_rn(w, step), -1e6), 1e6)
        whole = (ratio + 12582912.0) - 12582912.0
    return tl.minimum(tl.maximum(whole + zero, 0.0), top * 1.0)


@triton.jit
@no_type_check
def _kernel(
    w_ptr, codes_ptr, step_ptr, zero_ptr, inverse_ptr, floor_ptr, vectors_ptr, out, d, size, top,
    OUTLIERS: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, BLOCK)
    inside = column < d
    wide = tl.zeros((), tl.int64) + d
    vectors_ptr += tl.program_id(0).to(tl.int64) * d * d
    start = tl.load(inverse_ptr + column * (d + 1), mask=inside, other=1)
    for row in range(tl.program_id(0), out, tl.num_programs(0)):
        at = row * wide
        group = row * (d // size) + column // size
        grid = tl.load(step_ptr + group, mask=inside, other=1)
        zero = tl.load(zero_ptr + group, mask=inside, other=0)
        w = tl.load(w_ptr + at + column, mask=inside, other=0)
        diagonal = start
        alive = inside
        for step in range(0, d):
            code = nearest(w, grid, zero, top)
            error = w - (code - zero) * grid
            cost = error * error / diagonal
            if OUTLIERS:
                # Off the grid: below any cost, the largest error first. The margin is the reference's.
                cost = tl.where(tl.abs(error) > grid * (0.5 + 1e-5), -tl.abs(error), cost)
            p = tl.argmin(tl.where(alive, cost, float("inf")), 0)
            b = current_column(inverse_ptr, vectors_ptr, p, step, d, column, CHUNK)
            root = tl.sqrt(tl.maximum(pick(b, column, p), tl.load(floor_ptr + p)))
            alive = alive & (column != p)
            v = tl.where(alive, b, 0.0) / root
            tl.store(codes_ptr + at + p, pick(code, column, p).to(tl.int32).to(tl.uint8))
            w -= v * (pick(error, column, p) / root)
            diagonal = tl.where(alive, diagonal - v * v, 1.0)
            tl.store(vectors_ptr + step * d + column, v, mask=inside)
        # The next row writes its first vectors over those that other threads may still be reading.
        tl.debug_barrier()
