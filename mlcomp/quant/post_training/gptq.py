r"""GPTQ: OBQ with one column order for all rows, made fast by a Cholesky factor and lazy batches.

Notation: W weight, $H = 2XX^\top$, U with $U^\top U = (H+\lambda I)^{-1}$, q the rounded column.
Source: Frantar, Ashkboos, Hoefler, Alistarh 2023, arXiv:2210.17323, Algorithm 1.   Syllabus: 2.08, 3.11
"""

from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import check_bits, check_choice, check_group_size, check_hessian, check_weight
from mlcomp.context import isolated
from mlcomp.layerwise.column_sweep import ColumnSweep, check_sweep, column_order, inverse_factor
from mlcomp.quant.grid import CLIPS, fit_grid
from mlcomp.quant.quantized import Quantized


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
) -> Quantized:
    r"""Round the columns one after the other; each rounding error is made up for by the columns still to come.

    $e = (w_i - q_i)/U_{ii}$, then $w_j \leftarrow w_j - e\,U_{ij}$ for all later columns j.

    The columns in their order, while column i is rounded; the same for every row of W::

          finished batches      the lazy batch under way           columns to come
        ┌───┬───┬───┬───┬───┬─────────────┬───┬─────────────┬───┬───┬───┬───┬───┬───┐
        │ q   q   q   q   q │ q   q   q   │ w │ w   w   w   │ w   w   w   w   w   w │
        └───┴───┴───┴───┴───┴─────────────┴───┴─────────────┴───┴───┴───┴───┴───┴───┘
                             start         i                 end

    The error e of column i moves the columns up to ``end`` at once; those after it wait until the whole batch is
    rounded, and then one matrix product moves them for all errors of the batch.

    By hand, with $H = \begin{pmatrix} 5 & 3 \\ 3 & 2 \end{pmatrix}$ of determinant 1, two bits and no damping:
    $H^{-1} = \begin{pmatrix} 2 & -3 \\ -3 & 5 \end{pmatrix}$ and
    $U = \begin{pmatrix} \sqrt 2 & -3/\sqrt 2 \\ 0 & 1/\sqrt 2 \end{pmatrix}$. The rows of
    $W = \begin{pmatrix} 1.6 & 3 \\ 3 & 1.2 \end{pmatrix}$ have the range [0, 3], so the grid is 0, 1, 2, 3.
    First row: 1.6 becomes 2, $e = -0.4/\sqrt 2$, so 3 moves by $-e\,U_{12} = -0.6$ to 2.4, which becomes 2.
    Its squared output error $\tfrac12 \delta H \delta^\top$ is half the sum of the squared e,
    $\tfrac12 (0.08 + 0.32) = 0.2$; plain rounding to (2, 3) has 0.4. Second row: 3 is a point of the grid, e = 0,
    nothing moves, and 1.2 becomes 1.

    Args:
        weight: (out, inp), any float dtype; not modified.
        hessian: (inp, inp), $2XX^\top$, float32 or float64; not modified.
        bits: bits per code, 1 to 8.
        group_size: columns that share a step; must divide ``inp``. None: the whole row.
        symmetric: zero code fixed at 2^(b−1), not stored.
        clip: "minmax" or "mse", how a grid is fitted (see :func:`mlcomp.quant.fit_grid`).
        scale_dtype: dtype that the steps are stored in, as in :func:`mlcomp.quant.rtn`.
        order: "natural"; "activation" (largest diagonal of H first, while many columns can still compensate);
            or "ascending", its opposite.
        static_groups: with ``group_size``: fit every grid before the sweep, to the original weights of consecutive
            columns. Otherwise a group is ``group_size`` columns that follow each other in ``order``, and its grid is
            fitted to the weights as updated when the sweep reaches it.
        damp: share of the mean live diagonal of H added to its diagonal.
        block_size: columns per lazy batch; speed only.
    Returns:
        Codes in the original order of columns. ``group`` is set where groups are not consecutive columns.
    Raises:
        ValueError: malformed weight, H or option; H + λI singular.
    Guarantee: the codes do not depend on ``block_size``, nor on the scale of X; for H ∝ I and no reordering they are
        those of ``rtn``. A dead input (zero diagonal) gets the code of 0, and does not affect any grid fit.
    Cost: 2·out·inp² + inp³ FLOPs.
    Deviations: the grid of a group that starts inside a lazy batch is fitted to the weights as updated by that
        batch, too, where the published code takes them as they were before it. Those have not spread yet: the range
        is a little narrower and cuts off a few more weights, which lowers the error by up to 1 % with "minmax". With
        "mse", which cuts the range where it is best and has the least error of all, it only misses the weights as
        they are, and the error is the higher one. Dead inputs are zeroed before grids are fitted; damping is relative
        to the live inputs only.
    """
    weight = check_weight(weight)
    check_bits(bits)
    out, inp = weight.shape
    check_group_size(group_size, inp)
    hessian = check_hessian(hessian, inp)
    check_sweep(order, block_size)
    check_choice("clip", clip, CLIPS)

    columns = column_order(hessian, order)
    factor, dead = inverse_factor(hessian, columns, damp=damp)
    dtype = torch.promote_types(weight.dtype, torch.float32)  # of the grids: float64 for float64 weights only
    live = weight.to(dtype)
    live = live.masked_fill(dead, 0) if dead.any() else live
    size = group_size or inp
    static = group_size is None or static_groups

    fit = partial(fit_grid, bits=bits, symmetric=symmetric, clip=clip, scale_dtype=scale_dtype)
    grids = fit(live, group_size=group_size).groups() if static else []
    group = columns // size if static else torch.arange(inp, device=weight.device) // size
    codes = torch.empty(inp, out, dtype=torch.uint8, device=weight.device)

    sweep = ColumnSweep(live.T, factor, block_size=block_size, columns=columns)
    for i, g in enumerate(group.tolist()):
        if g == len(grids):  # the sweep enters a new group: its grid follows the updated weights
            grids.append(fit(sweep.now(i, i + size).T.to(dtype)))
        w = sweep.column()
        codes[i], value = grids[g].nearest(w)
        sweep.fix(w, value)

    back = columns.argsort()
    step, zero = (torch.cat([getattr(grid, name) for grid in grids], dim=1) for name in ("step", "zero"))
    scattered = not static and order != "natural"
    grid = replace(grids[0], step=step, zero=zero)
    return grid.quantized(codes[back].T.contiguous(), group[back] if scattered else None)
