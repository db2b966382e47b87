r"""Choose one level for each layer: least total error within a budget of total cost, exactly.

Notation: layer i, level l, error e_il, cost c_il, budget B. Minimize $\sum_i e_{i l_i}$ over $l$ with
$\sum_i c_{i l_i} \le B$: the multiple-choice knapsack problem.
Source: Frantar, Singh, Alistarh 2022, arXiv:2208.11580, section 6 (the problem; their dynamic program rounds costs to
10 000 buckets, so it may exceed the budget and skips levels of cost zero: this one does neither). Bound: Lagrangian
relaxation, Kellerer, Pferschy, Pisinger 2004, "Knapsack Problems", chapter 11.   Syllabus: 2.10
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

# A state is dropped only if its bound exceeds the best known solution by more than float64 rounding can explain.
BOUND_SLACK = 1e-9

Number = int | float


@dataclass(frozen=True)
class Choice:
    """The chosen level of each layer, and the totals. ``cost`` never exceeds the budget."""

    levels: tuple[int, ...]
    error: float
    cost: Number


def choose_levels(errors: Sequence[Sequence[Number]], costs: Sequence[Sequence[Number]], budget: Number) -> Choice:
    """Return the levels of least total error whose total cost is at most ``budget``.

    Layers are merged one by one into the Pareto front of (cost, error): a partial choice is dropped if another costs
    no more and errs no more, if the cheapest rest exceeds the budget, or if even the Lagrangian bound of the rest
    cannot reach the best known solution. Costs are compared as exact rationals (integers inside), never rounded.

    Args:
        errors: one sequence for each layer, one finite number for each level; layers may differ in levels. Negative
            numbers (a level that improves the loss) are allowed.
        costs: of the same shape, finite, ≥ 0; FLOPs, bytes or any additive cost.
        budget: the most that the levels may cost together.
    Returns:
        Level indices, total error, total cost. Among equal errors the cheapest.
    Raises:
        ValueError: no layers or levels, shapes that differ, NaN, inf or a negative cost, or no choice within the
            budget: the message says the least achievable cost.
    Guarantee: no choice within the budget has a smaller error, up to float64 rounding of the sums of errors.
    Cost: levels × front per layer, and its sort. The front has at most B + 1 states for integer costs; for others
        it can grow with the number of choices in theory. The bound keeps it at some hundred states on real layers.
    """
    _check(errors, costs, budget)
    errors = [[float(e) for e in row] for row in errors]
    whole, limit, unit = _as_integers(costs, budget)
    least = [min(row) for row in whole]
    if sum(least) > limit:
        lowest = Fraction(sum(least), unit)
        needed = lowest.numerator if lowest.denominator == 1 else float(lowest)
        raise ValueError(f"budget {budget} cannot be met: the least achievable cost is {needed}")
    total = max(1, sum(max(row) for row in whole))
    limit = min(limit, total)
    share = [[c / total for c in row] for row in whole]  # costs as floats in 0 … 1, for the bound alone
    bound, price = _lagrangian(errors, whole, share, limit, limit / total)
    kind = np.int64 if total < 2**62 else object
    cost, error, steps = np.zeros(1, kind), np.zeros(1), []
    for i, (row_errors, row_costs) in enumerate(zip(errors, whole, strict=True)):
        error_now = (error[:, None] + np.asarray(row_errors, float)).ravel()
        cost_now = (cost[:, None] + np.asarray(row_costs, kind)).ravel()
        reward = price * ((cost_now - limit) / total).astype(float)
        rest = sum(min(_priced(*rows, price)) for rows in zip(errors[i + 1 :], share[i + 1 :], strict=True))
        keep = (cost_now <= limit - sum(least[i + 1 :])) & (error_now + reward + rest <= bound)
        index = _front(cost_now, error_now, np.flatnonzero(keep))
        cost, error = cost_now[index], error_now[index]
        steps.append((index // len(row_errors), index % len(row_errors)))
    state, levels = len(error) - 1, []  # errors fall along the front: its last state is the best
    for parent, level in reversed(steps):
        levels.append(int(level[state]))
        state = int(parent[state])
    levels.reverse()
    used = sum(row[level] for row, level in zip(costs, levels, strict=True))
    return Choice(tuple(levels), math.fsum(row[level] for row, level in zip(errors, levels, strict=True)), used)


def _front(cost: np.ndarray, error: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Return those of ``index`` that no other one dominates, in order of rising cost and falling error."""
    index = index[np.argsort(error[index], kind="stable")]
    index = index[np.argsort(cost[index], kind="stable")]
    best = np.minimum.accumulate(error[index])
    return index[np.concatenate([[True], error[index][1:] < best[:-1]])]


def _priced(errors: Sequence[Number], costs: Sequence[Number], price: float) -> list[float]:
    return [e + price * c for e, c in zip(errors, costs, strict=True)]


def _lagrangian(
    errors: Sequence, whole: list[list[int]], share: list[list[float]], limit: int, limit_share: float
) -> tuple[float, float]:
    """Return an error that some choice within the limit reaches (with slack for rounding), and the price of cost.

    At a price p each layer takes the level of least e + p·c on its own. The price is narrowed down between one that
    is too low to meet the limit and one that does.
    """

    def respond(price: float) -> tuple[float, bool]:
        picks = []
        for e, c, exact in zip(errors, share, whole, strict=True):
            priced = _priced(e, c, price)
            picks.append(min(zip(priced, exact, range(len(e)), strict=True))[2])
        # The exact costs decide: as a share of the total, a small cost may round to nothing.
        used = sum(exact[l] for exact, l in zip(whole, picks, strict=True))
        return math.fsum(e[l] for e, l in zip(errors, picks, strict=True)), used <= limit

    best = math.fsum(min(zip(c, e, strict=True))[1] for e, c in zip(errors, whole, strict=True))
    scale = sum(max(abs(v) for v in e) for e in errors)
    low, high = 0.0, max(scale, 1e-290)
    while high < 1e280 and not respond(high)[1]:
        high *= 10
    for _ in range(200):
        # Prices span many orders of magnitude: halve the exponent, or come down while the lower end is still zero.
        middle = high * 1e-3 if low == 0 else math.sqrt(low * high)
        if not low < middle < high or high - low <= 1e-12 * high:
            break
        error, fits = respond(middle)
        if fits:
            best, high = min(best, error), middle
        else:
            low = middle
    return best + BOUND_SLACK * (scale + high * limit_share), high


def _as_integers(costs: Sequence[Sequence[Number]], budget: Number) -> tuple[list[list[int]], int, int]:
    """Return costs and budget as integers in units of 1/``unit``: floats are rationals, so nothing is rounded."""
    exact = [[Fraction(c) for c in row] for row in costs]
    unit = math.lcm(*(c.denominator for row in exact for c in row))
    whole = [[int(c * unit) for c in row] for row in exact]
    return whole, math.floor(Fraction(budget) * unit), unit


def _check(errors: Sequence, costs: Sequence, budget: Number) -> None:
    if len(errors) != len(costs) or not len(errors):
        raise ValueError(f"errors and costs must have one row for each layer, got {len(errors)} and {len(costs)}")
    for i, (e, c) in enumerate(zip(errors, costs, strict=True)):
        if len(e) != len(c) or not len(e):
            raise ValueError(f"layer {i} must have an error and a cost for each level, got {len(e)} and {len(c)}")
        if not all(isinstance(v, int) or math.isfinite(v) for v in (*e, *c)):
            raise ValueError(f"layer {i} has NaN or infinite errors or costs")
        if min(c) < 0:
            raise ValueError(f"layer {i} has a negative cost: {min(c)}")
    if not math.isfinite(budget):
        raise ValueError(f"budget must be finite, got {budget!r}")
