r"""ExactOBS: remove the weights of every row one by one, each time re-solving what is left.

Notation: W weight, $B = H^{-1}$ of a row over the inputs it still has, p a weight or P a block of c weights.
Source: Frantar, Singh, Alistarh 2022, arXiv:2208.11580, algorithm 1, sections 4 (n:m, global) and A.5 (blocks).
Syllabus: 2.05, 2.06
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlcomp.checks import (
    check_choice,
    check_hessian,
    check_interval,
    check_sparsity,
    check_target,
    check_weight,
    check_whole,
    narrowed,
    removals,
)
from mlcomp.context import isolated
from mlcomp.obs.global_selection import select_counts
from mlcomp.obs.group_update import update_rows
from mlcomp.obs.row_inverses import AGREE, working_dtype
from mlcomp.obs.row_removal import RowRemoval, pattern_room
from mlcomp.obs.trace import Trace

MAX_BYTES = 2**28


@isolated
def exact_obs(
    weight: Float[Tensor, "out inp"],
    hessian: Float[Tensor, "inp inp"],
    *,
    sparsity: float | None = None,
    pattern: tuple[int, int] | None = None,
    block_size: int = 1,
    scope: str = "global",
    row_cap: float = 1.0,
    damp: float = 0.0,
    max_bytes: int = MAX_BYTES,
) -> Float[Tensor, "out inp"]:
    r"""Prune one weight (or block) at a time, always the one that costs least after the others have made up for it.

    $p = \arg\min_p w_p^2/B_{pp}$, then $w \leftarrow w - \frac{w_p}{B_{pp}} B_{:,p}$; for a block
    $P = \arg\min_P w_P [B_{PP}]^{-1} w_P^\top$, then $w \leftarrow w - B_{:,P}[B_{PP}]^{-1} w_P$.

    Args:
        weight: (out, inp), any float dtype; not modified. The weights that are left are solved for in float64;
            which ones are removed is chosen in float32, or in float64 if W or H is float64.
        hessian: (inp, inp), $2XX^\top$, float32 or float64; not modified.
        sparsity: share of the weights (of the blocks, with ``block_size``) to remove, rounded half up to a count.
        pattern: (n, m), n zeros in every m consecutive inputs, instead of ``sparsity``. A weight can be removed while
            its m inputs have fewer than n zeros. A short last group of t < m inputs gets floor(n·t/m) zeros.
        block_size: c, remove c consecutive inputs together; a short last block counts as one. Not with ``pattern``.
        scope: how ``sparsity`` is shared: "row", the same count in each row; or "global", the counts that give the
            whole layer the least error for the total (see :func:`mlcomp.obs.select_counts`).
        row_cap: with scope="global", the largest share that one row may lose; it must be at least ``sparsity``.
            Below 1 it saves the time of tracing every row to its end.
        damp: share of the mean live diagonal of H added to its diagonal.
        max_bytes: bound on the working memory; sets how many rows are worked on at once, not the result.
    Returns:
        (out, inp) in the dtype of ``weight``; removed weights are exact zeros.
    Raises:
        ValueError: malformed weight, H or option; H + λI singular; max_bytes too small for one row.
    Guarantee: the result is optimal on its own mask (least squares); the error does not depend on the scale of X
        or on ``max_bytes``. Weights of dead inputs are zero and are counted first; if there are more of them than
        asked, all stay zero. Equal scores: the lowest input goes first. For H ∝ I it is magnitude pruning.
    Cost: per row about 2·inp²·k FLOPs for k removals, in matrix products.
    Deviations: global selection takes prefix sums of the losses, where the paper (algorithm 2) puts single losses
        on a heap, although these are not monotone; the rows are then re-solved in closed form, not replayed.
    """
    weight = check_weight(weight)
    check_target(sparsity, pattern)
    hessian = check_hessian(hessian, weight.shape[1])
    check_whole("block_size", block_size, 1, weight.shape[1])
    check_choice("scope", scope, ("global", "row"))
    if pattern is not None:
        if block_size != 1:
            raise ValueError(f"pattern and block_size exclude each other, got {pattern=} and {block_size=}")
    check_interval("row_cap", row_cap, "[0, 1]")
    if sparsity is not None and scope == "global" and row_cap < sparsity:
        raise ValueError(f"row_cap must lie between sparsity={sparsity} and 1, got {row_cap!r}")
    units = -(-weight.shape[1] // block_size)
    if pattern is not None:
        steps = sum(pattern_room(pattern, weight.shape[1]))
    else:
        assert sparsity is not None  # check_target saw to it
        steps = removals(row_cap if scope == "global" else sparsity, units)

    def traced(rows: Tensor, dtype: torch.dtype) -> Trace:
        removal = RowRemoval(rows, hessian, width=block_size, damp=damp, max_bytes=max_bytes, dtype=dtype)
        return Trace(removal.weight, removal.inverse, *removal.run(steps, pattern), block_size, rows.dtype)

    def counts_of(trace: Trace) -> Tensor:
        if sparsity is not None and scope == "global":
            return _counts_of_least_loss(trace, sparsity)
        return torch.full((len(weight),), steps, device=weight.device)

    return _on_best_masks(weight, working_dtype(weight, hessian), traced, counts_of, max_bytes)


def _on_best_masks(
    weight: Tensor,
    dtype: torch.dtype,
    traced: Callable[[Tensor, torch.dtype], Trace],
    counts_of: Callable[[Trace], Tensor],
    max_bytes: int,
) -> Tensor:
    """Trace all rows in ``dtype``, and solve for their weights in float64.

    A row whose loss turns out to be another than its trace says was too ill-conditioned for float32, and is traced
    again in float64.
    """
    trace = traced(weight, dtype)
    counts = counts_of(trace)
    rows, losses = update_rows(trace.weight, trace.removed_at(counts), trace.inverse, max_bytes=max_bytes)
    said = trace.total_losses().gather(1, counts[:, None])[:, 0]
    wrong = (said - losses).abs() > AGREE * losses + 1e-6 * losses.mean()
    if dtype == torch.float64 or not wrong.any():
        return narrowed(rows, weight.dtype)
    again = traced(weight[wrong], torch.float64)
    trace.order[wrong], trace.losses[wrong] = again.order, again.losses
    return trace.weights_at(counts_of(trace), max_bytes=max_bytes)


@isolated
def exact_obs_trace(
    weight: Float[Tensor, "out inp"],
    hessian: Float[Tensor, "inp inp"],
    *,
    block_size: int = 1,
    row_cap: float = 1.0,
    damp: float = 0.0,
    max_bytes: int = MAX_BYTES,
) -> Trace:
    """Run ExactOBS on each row to the end (or to the share ``row_cap``) and record order and losses.

    One trace serves every sparsity: ``trace.weights_at(counts)`` gives the weights with any count of removals in each
    row, optimal on their mask. Arguments and errors as in :func:`exact_obs`.
    """
    weight = check_weight(weight)
    check_sparsity(row_cap)
    hessian = check_hessian(hessian, weight.shape[1])
    check_whole("block_size", block_size, 1, weight.shape[1])
    removal = RowRemoval(weight, hessian, width=block_size, damp=damp, max_bytes=max_bytes)
    order, losses = removal.run(removals(row_cap, removal.units))
    return Trace(removal.weight, removal.inverse, order, losses, block_size, weight.dtype)


def weights_of_least_loss(trace: Trace, sparsity: float, *, max_bytes: int) -> Float[Tensor, "out inp"]:
    """Return the weights with this share of the layer's units removed, spread over the rows with the least loss."""
    return trace.weights_at(_counts_of_least_loss(trace, sparsity), max_bytes=max_bytes)


def _counts_of_least_loss(trace: Trace, sparsity: float) -> Int[Tensor, " out"]:
    # Rounding can put the total one above what the capped rows hold.
    total = min(removals(sparsity, trace.units * len(trace.weight)), trace.losses.numel())
    return select_counts(trace.losses, total).counts
