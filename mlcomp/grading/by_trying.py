"""What the checks of the exercises compare with: the definition, tried out.

Slow and plain on purpose: least squares instead of a Hessian, every choice instead of a clever one. It lives here,
not in the notebooks, so that reading a check does not answer its question.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Allowed = Callable[[list[int], int], bool]


def output_loss(weight: Tensor, new_weight: Tensor, inputs: Tensor) -> float:
    """Return ‖wX − ŵX‖²."""
    return float(((weight - new_weight) @ inputs).square().sum())


def refit(weight: Tensor, inputs: Tensor, kept: list[int], fixed: Tensor | None = None) -> Tensor:
    """Return the row that is best for ‖wX − ŵX‖² when only the inputs ``kept`` are free.

    The others hold the values in ``fixed`` (zero if it is None). Plain least squares: no Hessian, no inverse.
    """
    result = torch.zeros_like(weight) if fixed is None else fixed.clone()
    result[kept] = 0
    if kept:
        target = (weight - result) @ inputs
        result[kept] = torch.linalg.lstsq(inputs[kept].T, target[:, None]).solution[:, 0]
    return result


def remove_in_turn(
    weight: Tensor, inputs: Tensor, count: int, allowed: Allowed = lambda gone, p: True
) -> tuple[list[int], Tensor]:
    """Remove ``count`` weights, each time the allowed one after which least squares does best.

    ``allowed(gone, p)`` says whether p may go when the inputs ``gone`` have gone.
    """
    gone: list[int] = []
    for _ in range(count):
        kept = [j for j in range(len(weight)) if j not in gone]
        rows = {p: refit(weight, inputs, [j for j in kept if j != p]) for p in kept if allowed(gone, p)}
        gone.append(min(rows, key=lambda p: output_loss(weight, rows[p], inputs)))
    return gone, refit(weight, inputs, [j for j in range(len(weight)) if j not in gone])


def without_update(
    weight: Tensor, hessian: Tensor, count: int, allowed: Allowed = lambda gone, p: True
) -> list[Tensor]:
    """Return the rows of a known mistake, to tell the student of it: H⁻¹ stays as it was in the beginning.

    In the first row removed weights move with the others, in the second they are set to zero again at each step.
    """
    inverse, rows = torch.linalg.inv(hessian), []
    for again in (False, True):
        row = weight.clone()
        gone: list[int] = []
        for _ in range(count):
            score = row.square() / inverse.diagonal()
            p = min((p for p in range(len(row)) if p not in gone and allowed(gone, p)), key=score.__getitem__)
            gone.append(p)
            row -= row[p] / inverse[p, p] * inverse[:, p]
            row[gone if again else p] = 0
        rows.append(row)
    return rows


def round_to(weight: Tensor, levels: Tensor) -> Tensor:
    """Return the nearest levels."""
    return levels[(weight[:, None] - levels).abs().argmin(1)]


def quantize_in_order(weight: Tensor, inputs: Tensor, levels: Tensor, order: str = "cheapest") -> Tensor:
    """Fix one weight after the other to its level, the rest by least squares; order: cheapest, nearest or natural."""
    fixed, free = weight.clone(), list(range(len(weight)))
    for _ in range(len(weight)):
        moves = (fixed - round_to(fixed, levels)).abs()
        first = {"natural": free[:1], "nearest": [min(free, key=moves.__getitem__)], "cheapest": free}
        trials = {}
        for p in first[order]:
            trial = fixed.clone()
            trial[p] = round_to(fixed[p : p + 1], levels)[0]
            trials[p] = refit(weight, inputs, [j for j in free if j != p], trial)
        p = min(trials, key=lambda p: output_loss(weight, trials[p], inputs))
        fixed = trials[p]
        free.remove(p)
    return fixed


def round_in_turn(weight: Tensor, inputs: Tensor) -> Tensor:
    """Round the first column to whole numbers, let least squares move all others, go on with the next."""
    rows = []
    for row in weight:
        moved = row
        fixed = torch.empty_like(row)
        for k in range(len(row)):
            fixed[k] = torch.round(moved[k])
            moved = refit(row, inputs, list(range(k + 1, len(row))), torch.cat([fixed[: k + 1], row[k + 1 :]]))
        rows.append(fixed)
    return torch.stack(rows)


def unit_upper(hessian: Tensor) -> Tensor:
    """Return U + I of H = (U + I) D (U + I)ᵀ, column by column from the last: elimination from below."""
    rest, result = hessian.clone(), torch.eye(len(hessian), dtype=hessian.dtype)
    for k in reversed(range(len(hessian))):
        result[:k, k] = rest[:k, k] / rest[k, k]
        rest = rest - torch.outer(rest[:, k], rest[k]) / rest[k, k]
    return result


def feed_back(weight: Tensor, feedback: Tensor, *, start: Tensor, reverse: bool = False) -> Tensor:
    """Return round(W_k + (W − Ŵ) F_k), column by column; before its turn a column of Ŵ is that of ``start``."""
    result = start.clone()
    for k in sorted(range(weight.shape[1]), reverse=reverse):
        result[:, k] = torch.round(weight[:, k] + (weight - result) @ feedback[:, k])
    return result


def e8_points_near(x: Tensor) -> Tensor:
    """Return every point of E8 whose coordinates are next to those of one x, below or above: (≤ 256, 8)."""
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=x.dtype)] * 8)
    found = []
    for shift in (0.0, 0.5):
        whole = (x - shift).floor() + corners
        found.append(whole[whole.sum(1) % 2 == 0] + shift)
    return torch.cat(found)


def _all_totals(loss: Tensor, cost: Tensor) -> tuple[Tensor, Tensor]:
    choices = torch.cartesian_prod(*[torch.arange(loss.shape[1])] * len(loss)).reshape(-1, len(loss))
    rows = torch.arange(len(loss))
    return loss[rows, choices].sum(1), cost[rows, choices].sum(1)


def least_loss(loss: Tensor, cost: Tensor, budget: int) -> float:
    """Return the least loss within the budget by trying every choice, in two halves that are then matched."""
    half = (len(loss) + 1) // 2
    first_loss, first_cost = _all_totals(loss[:half], cost[:half])
    if half == len(loss):
        return float(first_loss[first_cost <= budget].min())
    second_loss, second_cost = _all_totals(loss[half:], cost[half:])
    order = second_cost.argsort()
    second_cost, running = second_cost[order], second_loss[order].cummin(0).values
    place = torch.searchsorted(second_cost, budget - first_cost, right=True) - 1
    possible = place >= 0
    return float((first_loss[possible] + running[place[possible]]).min())
