r"""How many weights each row loses, when only the total is given: from the loss traces of the rows.

Notation: $L_r(k)$ loss of row r after k removals, N removals in all, λ the price of one removal.
Minimize $\sum_r L_r(k_r)$ over $\sum_r k_r = N$. Were the increments of each $L_r$ rising, taking the N smallest of
all would be optimal (the paper's heap). They are not, and an increment can't be had without those before it.
So: for a price λ each row takes the k with the least $L_r(k) - λk$, which is optimal for the total that results
(Everett). The price that comes nearest to N leaves a small remainder; an exact search over the near-optimal
alternatives closes it.
Source: Frantar, Singh, Alistarh 2022, arXiv:2208.11580, section 4, algorithm 2; Everett 1963, Operations Research
11(3); the search over a core: Pisinger 1995, European Journal of Operational Research 83(2).   Syllabus: 2.05
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlcomp.checks import check_finite, check_floating, check_whole
from mlcomp.context import isolated

# Alternatives × totals that the exact search may look at before it is given up: about two seconds.
SEARCH_LIMIT = 2_000_000


@dataclass(frozen=True)
class Selection:
    """Counts per row, their total loss, and a bound: no counts with the same total lose less than ``bound``."""

    counts: Int[Tensor, " rows"]
    loss: float
    bound: float


@isolated
def select_counts(losses: Float[Tensor, "rows k"], total: int) -> Selection:
    """Share ``total`` removals over the rows with the least total loss.

    Args:
        losses: (rows, k), increments ≥ 0 in the order of removal, in any units.
        total: removals in all, 0 … rows·k.
    Returns:
        Counts with exactly that total. ``bound`` equals ``loss`` where the search proved the counts optimal;
        otherwise (many near ties) it is the Lagrangian bound, and ``loss - bound`` the most that could be gained.
    Raises:
        ValueError: total out of range; NaN, infinite or negative losses.
    Guarantee: bound ≤ optimum ≤ loss; loss is never above that of any threshold on single increments.
    Cost: about 100·rows·k for the price, and the search over the alternatives.
    """
    check_floating("losses", losses)
    if losses.ndim != 2:
        raise ValueError(f"losses must be (rows, k), got shape {tuple(losses.shape)}")
    rows, steps = losses.shape
    check_whole("total", total, 0, rows * steps)
    check_finite("losses", losses)
    if (losses < 0).any():
        raise ValueError(f"losses must not be negative, got a minimum of {float(losses.min()):.3g}")
    losses = losses.detach()
    cost = torch.nn.functional.pad(losses.double().cumsum(1), (1, 0))
    price, low, high = _price(cost, total)
    k = torch.arange(steps + 1, device=cost.device, dtype=cost.dtype)
    extra = cost - price * k
    least = extra.amin(1, keepdim=True)
    extra = extra - least  # what a row loses by not taking its best count at this price; ≥ 0
    bound = float(least.sum()) + price * total
    counts = _fill(extra, low, high, total)
    gap = float(extra.gather(1, counts[:, None]).sum())
    # Differences of sums of this size are rounding.
    proven = gap <= 1e-12 * float(cost[:, -1].sum())
    if not proven:
        counts, proven = _search(extra, counts, total, gap)
    loss = float(cost.gather(1, counts[:, None]).sum())
    return Selection(counts, loss, loss if proven else min(bound, loss))


def _price(cost: Tensor, total: int) -> tuple[float, Tensor, Tensor]:
    """Return a price λ, and counts that are optimal just below and just above it, with totals around ``total``."""
    k = torch.arange(cost.shape[1], device=cost.device, dtype=cost.dtype)

    def take(price: float) -> Tensor:
        return (cost - price * k).argmin(1)

    below, above = 0.0, float(cost[:, -1].max())
    low, high = torch.zeros(len(cost), dtype=torch.int64, device=cost.device), torch.full_like(take(0.0), len(k) - 1)
    for _ in range(64):  # halvings: beyond float64's 53 bits of the dearest row's total
        price = (below + above) / 2
        counts = take(price)
        taken = int(counts.sum())
        if taken == total:
            return price, counts, counts
        if taken < total:
            below, low = price, counts
        else:
            above, high = price, counts
    return above, low, high


def _fill(extra: Tensor, low: Tensor, high: Tensor, total: int) -> Tensor:
    """Go from ``low`` to ``high`` row by row until ``total`` is reached; the last row goes part of the way."""
    room = (high - low).clamp(min=0)
    missing = total - int(low.sum())
    before = room.cumsum(0) - room
    counts = low + (missing - before).clamp(min=0).minimum(room)
    short = total - int(counts.sum())
    if short:  # some row has low > high: no monotone way; give the rest to whichever rows have room
        space = extra.shape[1] - 1 - counts
        before = space.cumsum(0) - space
        counts = counts + (short - before).clamp(min=0).minimum(space)
    return counts


def _search(extra: Tensor, start: Tensor, total: int, gap: float) -> tuple[Tensor, bool]:
    """Find the counts with the least sum of ``extra``, which is below ``gap`` or the start is optimal.

    A count with ``extra`` ≥ gap is in no better solution. What is left, few counts per row, is searched by a dynamic
    program over the total so far, which drops every state that costs ``gap`` or more.
    """
    best = extra.argmin(1)
    options = [
        [(int(j) - int(best[r]), float(extra[r, j])) for j in torch.nonzero(extra[r] < gap)[:, 0]]
        for r in torch.nonzero((extra < gap).sum(1) > 1)[:, 0].tolist()
    ]
    open_rows = torch.nonzero((extra < gap).sum(1) > 1)[:, 0].tolist()
    states: dict[int, tuple[float, tuple]] = {0: (0.0, ())}
    work = 0
    for row, choices in zip(open_rows, options, strict=True):
        work += len(states) * len(choices)
        if work > SEARCH_LIMIT:
            return start, False
        following: dict[int, tuple[float, tuple]] = {}
        for reached, (spent, path) in states.items():
            for offset, price in choices:
                cost = spent + price
                if cost < gap and (reached + offset not in following or cost < following[reached + offset][0]):
                    following[reached + offset] = (cost, (path, row, offset) if offset else path)
        states = following
    found = states.get(total - int(best.sum()))
    if found is None:
        return start, True
    counts, path = best.clone(), found[1]
    while path:
        path, row, offset = path
        counts[row] += offset
    return counts, True
