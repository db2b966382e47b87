r"""GPTQ with the columns of a lazy batch in one launch, all rows at once.

Notation: as the reference. See :mod:`mlcomp.kernels.block_sweep` for what a program does. Grids are fitted outside
the kernel, between two launches where they follow updated weights.
Source: Frantar, Ashkboos, Hoefler, Alistarh 2023, arXiv:2210.17323, Algorithm 1.   Syllabus: 2.08, 3.11
"""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import check_bits, check_choice, check_dtype, check_group_size, check_hessian, check_weight
from mlcomp.context import isolated
from mlcomp.kernels.block_sweep import BlockSweep, Grids, launches
from mlcomp.kernels.launch import check_devices
from mlcomp.layerwise.column_sweep import check_sweep, column_order, inverse_factor
from mlcomp.quant.grid import CLIPS, Grid, fit_grid
from mlcomp.quant.quantized import Quantized

REFERENCE = "mlcomp.quant.gptq"


@isolated
def gptq(
    weight: Float[Tensor, "out inp"],
    hessian: Float[Tensor, "inp inp"],
    *,
    bits: int,
    group_size: int | None = None,
    symmetric: bool = False,
    clip: str = "minmax",
    scale_dtype: torch.dtype | None = None,
    order: str = "natural",
    static_groups: bool = False,
    damp: float = 0.01,
    block_size: int = 128,
    dtype: torch.dtype = torch.float64,
) -> Quantized:
    r"""Round the columns one after the other; each rounding error is made up for by the columns still to come.

    $e = (w_i - q_i)/U_{ii}$, then $w_j \leftarrow w_j - e\,U_{ij}$ for all later columns j.

    Args:
        weight, hessian, bits, group_size, symmetric, clip, scale_dtype, order, static_groups, damp: as the reference.
        block_size: columns per lazy batch, of which at most 128 are used; speed only.
        dtype: that the sweep is computed in: float64 as the reference, or float32; the factor is made in float64.
    Returns:
        Codes in the original order of columns. ``group`` is set where groups are not consecutive columns.
    Raises:
        ValueError: malformed weight, H or option; H + λI singular; wrong device. TypeError: another dtype.
    Guarantee: in float64 the reference's codes, unless a weight ties between two codes up to rounding.
    Cost: out·inp² + inp³ FLOPs, nearly all in matrix products; a launch and a product a batch. Groups that are not
        static need a launch each.
    """
    check_devices(weight=weight, hessian=hessian)
    weight = check_weight(weight)
    check_bits(bits)
    out, inp = weight.shape
    check_group_size(group_size, inp)
    hessian = check_hessian(hessian, inp)
    check_sweep(order, block_size)
    check_choice("clip", clip, CLIPS)
    check_dtype("dtype", dtype, (torch.float32, torch.float64))

    columns = column_order(hessian, order)
    factor, dead = inverse_factor(hessian, columns, damp=damp)
    own = torch.promote_types(weight.dtype, torch.float32)  # of the grids: float64 for float64 weights only
    live = weight.to(own).masked_fill(dead, 0)
    size = group_size or inp
    static = group_size is None or static_groups
    fit = partial(fit_grid, bits=bits, symmetric=symmetric, clip=clip, scale_dtype=scale_dtype)
    if static:
        grid = fit(live, group_size=size)
        step, zero, group = grid.step.T.contiguous(), grid.zero.T.contiguous(), columns // size
    else:
        step, zero = torch.empty(2, inp // size, out, dtype=own, device=weight.device)
        group = torch.arange(inp, device=weight.device) // size

    sweep = BlockSweep(live[:, columns], factor, dtype=dtype, grids=Grids(step, zero, group.int(), bits))
    for start, end, stop in launches(inp, inp if static else size, block_size):
        if not static and start % size == 0:  # the sweep enters a new group: its grid follows the updated weights
            entered = fit(sweep.weight[:, start : start + size].to(own))
            step[start // size], zero[start // size] = entered.step[:, 0], entered.zero[:, 0]
        sweep.fix(start, end, stop)

    back = columns.argsort()
    scattered = not static and order != "natural"
    grid = Grid(step.T.contiguous(), zero.T.contiguous(), bits, symmetric, scale_dtype)
    return grid.quantized(sweep.result[back].T.contiguous(), group[back] if scattered else None)
