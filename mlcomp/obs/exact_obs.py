r"""ExactOBS: remove the weights of every row one by one, each time re-solving what is left.

Notation: W weight, $B = H^{-1}$ of a row over the inputs it still has, p a weight or P a block of c weights.
Source: Frantar, Singh, Alistarh 2022, arXiv:2208.11580, algorithm 1, sections 4 (n:m, global) and A.5 (blocks).
Syllabus: 2.05, 2.06
"""

from jaxtyping import Float
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
        weight: (out, inp), any float dtype, computed in float64; not modified.
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
        removal = RowRemoval(weight, hessian, width=1, damp=damp, max_bytes=max_bytes)
        steps = sum(pattern_room(pattern, weight.shape[1]))
        return narrowed(removal.run(steps, pattern)[0], weight.dtype)
    assert sparsity is not None  # check_target saw to it
    if scope == "row":
        removal = RowRemoval(weight, hessian, width=block_size, damp=damp, max_bytes=max_bytes)
        return narrowed(removal.run(removals(sparsity, removal.units))[0], weight.dtype)
    check_interval("row_cap", row_cap, "[0, 1]")
    if row_cap < sparsity:
        raise ValueError(f"row_cap must lie between sparsity={sparsity} and 1, got {row_cap!r}")
    trace = exact_obs_trace(weight, hessian, block_size=block_size, row_cap=row_cap, damp=damp, max_bytes=max_bytes)
    return weights_of_least_loss(trace, sparsity, max_bytes=max_bytes)


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
    _, order, losses = removal.run(removals(row_cap, removal.units))
    return Trace(removal.weight, removal.inverse, order, losses, block_size, weight.dtype)


def weights_of_least_loss(trace: Trace, sparsity: float, *, max_bytes: int) -> Float[Tensor, "out inp"]:
    """Return the weights with this share of the layer's units removed, spread over the rows with the least loss."""
    # Rounding can put the total one above what the capped rows hold.
    total = min(removals(sparsity, trace.units * len(trace.weight)), trace.losses.numel())
    return trace.weights_at(select_counts(trace.losses, total).counts, max_bytes=max_bytes)
