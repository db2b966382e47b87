r"""ExactOBS: remove the weights of every row one by one, each time re-solving what is left.

Notation: W weight, $B = H^{-1}$ of a row over the inputs it still has, p a weight or P a block of c weights.
Source: Frantar, Singh, Alistarh 2022, arXiv:2208.11580, algorithm 1, sections 4 (n:m, global) and A.5 (blocks).
Syllabus: 2.05, 2.06
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlcomp.checks import check_hessian, check_sparsity, check_target, check_weight, removals
from mlcomp.obs.global_selection import select_counts
from mlcomp.obs.hessian import damped_hessian, inverse_hessian
from mlcomp.obs.row_inverses import SHRINK, RowInverses, rows_per_batch
from mlcomp.obs.trace import Trace

MAX_BYTES = 2**28


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
    Guarantee: the result is optimal on its own mask (least squares); the error does not depend on the scale of X or on
        ``max_bytes``. Weights of dead inputs are zero and are counted first; more of them than asked stay zero.
        Equal scores: the lowest input goes first. For H ∝ I the mask is that of magnitude pruning.
    Cost: per row about 2·inp²·k FLOPs for k removals, in matrix products.
    Deviations: global selection takes prefix sums of the losses, where the paper sorts single losses (Algorithm 2's heap)
        although these are not monotone; the masks of rows are then re-solved in closed form, not replayed.
    """
    check_weight(weight)
    check_target(sparsity, pattern)
    if scope not in ("global", "row"):
        raise ValueError(f'scope must be "global" or "row", got {scope!r}')
    if pattern is not None:
        _check_layer(weight, hessian, block_size)
        if block_size != 1:
            raise ValueError(f"pattern and block_size exclude each other, got {pattern=} and {block_size=}")
        cleaned, removal = _prepare(weight, hessian, 1, damp, max_bytes)
        return removal.run(cleaned, _pattern_steps(pattern, weight.shape[1]), pattern)[0].to(weight.dtype)
    if scope == "row":
        _check_layer(weight, hessian, block_size)
        cleaned, removal = _prepare(weight, hessian, block_size, damp, max_bytes)
        return removal.run(cleaned, removals(sparsity, removal.units))[0].to(weight.dtype)
    if not sparsity <= row_cap <= 1:
        raise ValueError(f"row_cap must lie between sparsity={sparsity} and 1, got {row_cap!r}")
    trace = exact_obs_trace(weight, hessian, block_size=block_size, row_cap=row_cap, damp=damp, max_bytes=max_bytes)
    total = removals(sparsity, trace.units * len(weight))
    # Rounding can put the total one above what the capped rows hold.
    return trace.weights_at(select_counts(trace.losses, min(total, trace.losses.numel())).counts)


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
    check_weight(weight)
    check_sparsity(row_cap)
    _check_layer(weight, hessian, block_size)
    cleaned, removal = _prepare(weight, hessian, block_size, damp, max_bytes)
    steps = removals(row_cap, removal.units)
    _, order, losses = removal.run(cleaned, steps)
    return Trace(
        cleaned, removal.inverse[: weight.shape[1], : weight.shape[1]], order, losses, block_size, weight.dtype
    )


def _check_layer(weight: Tensor, hessian: Tensor, block_size: int) -> None:
    inp = weight.shape[1]
    check_hessian(hessian, inp)
    if isinstance(block_size, bool) or not isinstance(block_size, int) or not 1 <= block_size <= inp:
        raise ValueError(f"block_size must be a whole number from 1 to the {inp} inputs, got {block_size!r}")


def _pattern_steps(pattern: tuple[int, int], inp: int) -> int:
    return sum(_room(pattern, inp))


def _room(pattern: tuple[int, int], inp: int) -> list[int]:
    """Return how many zeros each group of m inputs gets: n, and floor(n·t/m) in a short last group of t."""
    zeros, size = pattern
    return [zeros * min(size, inp - start) // size for start in range(0, inp, size)]


def _prepare(weight: Tensor, hessian: Tensor, width: int, damp: float, max_bytes: int):
    """Return the weight in float64 with dead inputs at zero, and the machinery that removes from it."""
    inverse = inverse_hessian(hessian, damp=damp)
    diagonal = damped_hessian(hessian, damp=damp).matrix.diagonal()
    cleaned = weight.double().masked_fill(inverse.dead, 0)
    return cleaned, _Removal(inverse.inverse, diagonal, width, len(weight), max_bytes)


class _Removal:
    """Algorithm 1 for all rows, in batches, on units of ``width`` consecutive inputs."""

    def __init__(self, inverse: Tensor, diagonal: Tensor, width: int, out: int, max_bytes: int):
        inp = len(inverse)
        self.units = -(-inp // width)
        self.width = width
        # A short last block is filled up with inputs that no other input knows and whose weight is zero.
        size = self.units * width
        self.inverse = torch.eye(size, dtype=inverse.dtype, device=inverse.device)
        self.inverse[:inp, :inp] = inverse
        floor = torch.cat([diagonal, diagonal.new_ones(size - inp)])
        self.batch = rows_per_batch(size, out, inverse.element_size(), max_bytes)
        self.state = RowInverses(self.inverse, floor, self.batch)

    def run(
        self, weight: Tensor, steps: int, pattern: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return weight (out, inp), order (out, steps) and losses (out, steps) after ``steps`` removals in each row."""
        inp = weight.shape[1]
        padded = torch.nn.functional.pad(weight, (0, len(self.inverse) - inp))
        done = [self._rows(rows.clone(), steps, pattern) for rows in padded.split(self.batch)]
        result, order, losses = (torch.cat(parts) for parts in zip(*done, strict=True))
        return result[:, :inp], order, losses

    def _rows(self, w: Tensor, steps: int, pattern: tuple[int, int] | None) -> tuple[Tensor, Tensor, Tensor]:
        rows, inp = w.shape
        c, state = self.width, self.state
        state.reset(rows)
        # The c×c diagonal blocks of the inverse, (c, c, rows, units): all that the scores need.
        blocks = self.inverse.view(self.units, c, self.units, c).diagonal(dim1=0, dim2=2)
        blocks = blocks[:, :, None].repeat(1, 1, rows, 1)
        identity = torch.eye(c, dtype=w.dtype, device=w.device)[:, :, None, None].expand(c, c, rows, 1)
        barred = torch.zeros(rows, self.units, dtype=w.dtype, device=w.device)  # infinite: may not be removed
        gone = torch.zeros_like(barred, dtype=torch.bool)
        order = torch.empty(rows, steps, dtype=torch.int64, device=w.device)
        losses = torch.empty(rows, steps, dtype=w.dtype, device=w.device)
        room = torch.tensor(_room(pattern or (1, 1), inp), device=w.device).repeat(rows, 1)
        if pattern:
            group = state.index // pattern[1]
            barred.masked_fill_(room.gather(1, group) == 0, torch.inf)
        for step in range(steps):
            scores = block_scores(blocks, w.view(rows, -1, c)).add_(barred)
            unit = scores.argmin(1)
            at = unit[:, None]
            losses[:, step] = scores.gather(1, at)[:, 0] / 2
            order[:, step] = state.index.gather(1, at * c)[:, 0] // c
            for position in unit * c + torch.arange(c, device=w.device)[:, None]:
                vector, root = state.eliminate(position)
                w.addcmul_(vector, w.gather(1, position[:, None]) / root, value=-1)
                by_block = vector.view(rows, -1, c).permute(2, 0, 1)
                blocks.addcmul_(by_block[:, None], by_block[None], value=-1)
            gone.scatter_(1, at, True)
            barred.scatter_(1, at, torch.inf)
            blocks.scatter_(3, at.expand(c, c, rows, 1), identity)  # keeps the barred scores finite plus infinity
            if pattern:
                here = group.gather(1, at)
                room.scatter_add_(1, here, -torch.ones_like(here))
                barred.masked_fill_((group == here) & (room.gather(1, here) == 0), torch.inf)
            left = self.units - step - 1
            if left <= SHRINK * gone.shape[1] and step + 1 < steps:
                keep = (~gone).nonzero()[:, 1].view(rows, left)
                columns = (keep[:, :, None] * c + torch.arange(c, device=w.device)).flatten(1)
                state.compact(columns)
                w, barred, gone = w.gather(1, columns), barred.gather(1, keep), gone.gather(1, keep)
                blocks = blocks.gather(3, keep.expand(c, c, rows, left))
                if pattern:
                    group = group.gather(1, keep)
        w.masked_fill_(gone.repeat_interleave(c, dim=1), 0)
        return torch.zeros(rows, inp, dtype=w.dtype, device=w.device).scatter_(1, state.index, w), order, losses


def block_scores(
    blocks: Float[Tensor, "c c rows units"], weight: Float[Tensor, "rows units c"]
) -> Float[Tensor, "rows units"]:
    r"""Return $w_P [B_{PP}]^{-1} w_P^\top$ of every unit: $w_p^2/B_{pp}$ for single weights. Twice the loss it causes.

    By elimination inside each block, all blocks at once: c steps instead of a c×c solve for every row and block.
    """
    c = len(blocks)
    score = torch.zeros_like(weight[:, :, 0])
    w = list(weight.unbind(2))
    for j in range(c):
        pivot = blocks[j, j]
        score = score + w[j] * w[j] / pivot
        if j + 1 < c:
            ratio = blocks[:, j] / pivot
            w = [w[i] - ratio[i] * w[j] if i > j else w[i] for i in range(c)]
            blocks = blocks - ratio[:, None] * blocks[j]
    return score
