r"""Optimal Brain Quantizer: round the weights of a row one by one, the others make up for each rounding error.

Notation: W weight, $B = H^{-1}$ of a row over the weights not yet rounded, quant(w) the nearest grid value, s its
step.
Source: Frantar, Singh, Alistarh 2022, arXiv:2208.11580, section 5, algorithm 3 (algorithm 2 of the lecture).
Syllabus: 2.08
"""

from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mlcomp.checks import check_bits, check_choice, check_group_size, check_hessian, check_weight
from mlcomp.context import isolated
from mlcomp.layerwise.column_sweep import ORDERS, ColumnSweep, column_order, inverse_factor
from mlcomp.layerwise.hessian import damped_hessian, inverse_hessian, output_loss
from mlcomp.obs.row_inverses import AGREE, SHRINK, RowInverses, power_of_two, rows_per_batch, working_dtype
from mlcomp.quant.grid import CLIPS, Grid, fit_grid
from mlcomp.quant.quantized import Quantized

# The orders that each row finds for itself; the others, of the column sweep, are one order for all rows.
OWN_ORDERS = ("greedy", "saving")


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
    order: str = "greedy",
    outliers: bool = True,
    damp: float = 0.0,
    max_bytes: int = 2**28,
) -> Quantized:
    r"""Round in each row next the weight that costs least, and move the others of the row.

    $p = \arg\min_p (\mathrm{quant}(w_p) - w_p)^2/B_{pp}$, then
    $w \leftarrow w - \frac{w_p - \mathrm{quant}(w_p)}{B_{pp}} B_{:,p}$.

    Args:
        weight: (out, inp), any float dtype; computed in float32, or in float64 if W or H is float64; not modified.
        hessian: (inp, inp), $2XX^\top$, float32 or float64; not modified.
        bits: bits per code, 1 to 8.
        symmetric: zero code fixed at 2^(b−1), not stored.
        group_size: columns that share a step; must divide ``inp``. None: the whole row. Grids are fitted once, to the
            original weights.
        clip: "minmax" or "mse", how a grid is fitted (see :func:`mlcomp.quant.fit_grid`).
        scale_dtype: dtype that the steps are stored in, as in :func:`mlcomp.quant.rtn`.
        order: "greedy", the method; "saving", greedy too, but next comes the weight with the largest
            $((s/2)^2 - (\mathrm{quant}(w_p) - w_p)^2)/B_{pp}$; or one order for all rows: "natural", "activation"
            (largest diagonal of H first), "ascending" (smallest first).
        outliers: where each row has its own order, weights that updates have pushed off the grid, so that their
            rounding error exceeds s/2, are rounded at once, the largest error first, while others are left to make
            up for it.
        damp: share of the mean live diagonal of H added to its diagonal.
        max_bytes: bound on the working memory; sets how many rows are worked on at once, not the result.
    Returns:
        codes (out, inp) uint8; step and zero, one per row and group.
    Raises:
        ValueError: malformed weight, H or option; H + λI singular; max_bytes too small for one row.
    Guarantee: the codes do not depend on the scale of X nor on ``max_bytes``; for H ∝ I they are those of ``rtn``.
        A dead input gets the code of 0 and does not affect any grid. Equal costs: the lowest input goes first.
    Cost: per row about 2·inp³/3 FLOPs in matrix products; a fixed order, shared by all rows, needs 2·inp².
    Deviations: the order "saving" is not in the paper. The greedy rule takes what costs little now, so weights of
        strongly driven inputs come last, when nothing is left to make up for them. "saving" compares with the worst
        that can happen to the weight, a rounding error of s/2: it keeps the small errors of the greedy rule and the
        early strong inputs of "activation", and was better than both on every kind of layer tried.
        Dead inputs are zeroed before the grids are fitted; damping is relative to the live inputs only.
    """
    weight = check_weight(weight)
    check_bits(bits)
    inp = weight.shape[1]
    check_group_size(group_size, inp)
    hessian = check_hessian(hessian, inp)
    check_choice("order", order, (*OWN_ORDERS, *ORDERS))
    check_choice("clip", clip, CLIPS)

    inverse = inverse_hessian(hessian, damp=damp)
    live = weight.to(torch.promote_types(weight.dtype, torch.float32)).masked_fill(inverse.dead, 0)
    grid = fit_grid(live, bits=bits, group_size=group_size, symmetric=symmetric, clip=clip, scale_dtype=scale_dtype)
    if order in OWN_ORDERS:
        own = grid.spread(inp)  # each weight's own grid, (out, inp), so that weights can be gathered with their grids
        damped = damped_hessian(hessian, damp=damp).matrix
        rule = {"top": 2**bits - 1, "saving": order == "saving", "outliers": outliers}

        def rounded(rows: Tensor | slice, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
            parts = (live[rows], own.step[rows], own.zero[rows])
            return _round_all(*parts, inverse.inverse, damped.diagonal(), dtype, max_bytes, **rule)

        codes, said = rounded(slice(None), working_dtype(weight, hessian))
        # The losses of the steps add up to that of the row, unless its inverse is too ill-conditioned for float32.
        losses = output_loss(own.decode(codes).double() - live.double(), damped) / 2
        wrong = (said - losses).abs() > AGREE * losses + 1e-6 * losses.mean()
        if wrong.any() and working_dtype(weight, hessian) != torch.float64:
            codes[wrong], _ = rounded(wrong, torch.float64)
    else:
        codes = _round_in_order(live, hessian, grid, order, damp)
    return grid.quantized(codes)


def _round_all(
    weight: Tensor,
    step: Tensor,
    zero: Tensor,
    inverse: Tensor,
    diagonal: Tensor,
    dtype: torch.dtype,
    max_bytes: int,
    **rule: Any,
) -> tuple[UInt8[Tensor, "rows inp"], Float[Tensor, " rows"]]:
    """Return the codes of all rows, and their losses as the steps add up, worked out in ``dtype``.

    Powers of two take the weights and the inverse near 1, so that no product leaves a narrow dtype's range.
    """
    unit, scale = power_of_two(inverse.diagonal().median()), power_of_two(weight.abs().max())
    inverse = (inverse / unit).to(dtype)
    batch = rows_per_batch(weight.shape[1], len(weight), max_bytes, dtype=dtype)
    state = RowInverses(inverse, diagonal * unit, batch)
    parts = (weight.double() / scale, step.double() / scale, zero)
    batches = zip(*(x.to(dtype).split(batch) for x in parts), strict=True)
    done = [_round_rows(w.clone(), s, z, inverse, state, **rule) for w, s, z in batches]
    codes, losses = (torch.cat(part) for part in zip(*done, strict=True))
    return codes, losses.double() * (scale * (scale / unit))


def _round_rows(
    w: Tensor,
    step: Tensor,
    zero: Tensor,
    inverse: Tensor,
    state: RowInverses,
    *,
    top: int,
    saving: bool,
    outliers: bool,
) -> tuple[UInt8[Tensor, "rows inp"], Float[Tensor, " rows"]]:
    """Round a batch of rows, each in its own greedy order; ``w`` is used up. Also return the loss of each row."""
    rows, inp = w.shape
    state.reset(rows)
    codes = torch.empty(rows, inp, dtype=torch.uint8, device=w.device)
    diagonal = inverse.diagonal().repeat(rows, 1)
    barred = torch.zeros(rows, inp, dtype=w.dtype, device=w.device)  # infinite where a weight is rounded
    # Beyond half a step a weight is off the grid; the margin keeps rounding to the midpoint from counting. A rounded
    # weight has no limit.
    limit = step * (0.5 + 1e-5)
    losses = w.new_zeros(rows, 1)
    for left in range(inp, 0, -1):
        code = (w / step).round_().add_(zero).clamp_(0, top)
        error = w - (code - zero) * step
        cost = error.square()
        if saving:
            cost -= step.square() / 4
        position = cost.div_(diagonal).add_(barred).argmin(1)
        if outliers:
            size = error.abs()
            off_grid = size > limit
            if off_grid.any():
                largest = size.masked_fill_(~off_grid, 0).argmax(1)
                position = torch.where(off_grid.any(1), largest, position)
        at = position[:, None]
        codes.scatter_(1, state.index.gather(1, at), code.gather(1, at).to(torch.uint8))
        vector, root = state.eliminate(position)
        scaled = error.gather(1, at) / root
        losses += scaled.square() / 2
        w.addcmul_(vector, scaled, value=-1)
        diagonal.addcmul_(vector, vector, value=-1).scatter_(1, at, 1)
        barred.scatter_(1, at, torch.inf)
        limit.scatter_(1, at, torch.inf)
        if left - 1 <= SHRINK * w.shape[1] and left > 1:
            keep = (barred == 0).nonzero()[:, 1].view(rows, left - 1)
            state.compact(keep)
            w, step, zero, limit = (x.gather(1, keep) for x in (w, step, zero, limit))
            diagonal, barred = diagonal.gather(1, keep), barred.gather(1, keep)
    return codes, losses[:, 0]


def _round_in_order(weight: Tensor, hessian: Tensor, grid: Grid, order: str, damp: float) -> UInt8[Tensor, "out inp"]:
    """Round the columns of all rows in one order: then one factorization serves every row."""
    out, inp = weight.shape
    columns = column_order(hessian, order)
    factor, _ = inverse_factor(hessian, columns, damp=damp)
    codes = torch.empty(out, inp, dtype=torch.uint8, device=weight.device)
    grids, size = grid.groups(), inp // grid.step.shape[1]
    sweep = ColumnSweep(weight.T, factor, block_size=128, columns=columns)
    for column in columns.tolist():
        w = sweep.column()
        codes[:, column], value = grids[column // size].nearest(w)
        sweep.fix(w, value)
    return codes
