r"""Algorithms 1 and 2 of the lecture as printed, for one row: to be read, and to check the batched versions with.

Notation: w one row of W, $B = H^{-1}$ with $H = 2XX^\top$, M the weights that are left, p the next of them.
Source: Frantar, Singh, Alistarh 2022, arXiv:2208.11580, algorithm 1 and algorithm 3 (algorithm 2 of the lecture).
Syllabus: 2.05, 2.08
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import check_like, check_vector, check_whole
from mlcomp.context import isolated


@isolated
def literal_exact_obs(
    row: Float[Tensor, " inp"], inverse: Float[Tensor, "inp inp"], k: int
) -> tuple[Float[Tensor, " inp"], list[int], list[float]]:
    r"""Remove k weights from a row, one by one (algorithm 1).

    Args:
        row: w, (inp,), float32 or float64; not modified.
        inverse: B, (inp, inp), of the same dtype; not modified.
        k: weights to remove, 0 to inp.
    Returns:
        The row with exact zeros where a weight was removed; the order of removal; the loss of each step,
        $\tfrac12 w_p^2/B_{pp}$, the increase of $\lVert \delta w X\rVert^2$.
    Raises:
        ValueError: malformed row or inverse, k out of range.
    Guarantee: every step removes the weight that costs least, and the row is optimal on what is left.
    Cost: 2·inp²·k FLOPs, most of them memory traffic; :func:`mlcomp.obs.exact_obs` does all rows at once.
    """
    check_vector("row", row)
    check_like("inverse", inverse, (len(row), len(row)), "the row's weights")
    check_whole("k", k, 0, len(row))
    row, inverse = row.detach(), inverse.detach()
    w, b, left = row.clone(), inverse.clone(), torch.arange(len(row), device=row.device)
    order, losses = [], []
    for _ in range(k):
        p = int(left[(w[left] ** 2 / b.diagonal()[left]).argmin()])
        losses.append(float(w[p] ** 2 / b[p, p]) / 2)
        w = w - w[p] / b[p, p] * b[:, p]
        b = b - torch.outer(b[:, p], b[p]) / b[p, p]
        left = left[left != p]
        order.append(p)
    w[order] = 0  # they are, but for rounding
    return w, order, losses


@isolated
def literal_obq(
    row: Float[Tensor, " inp"],
    inverse: Float[Tensor, "inp inp"],
    quant: Callable[[Float[Tensor, " inp"]], Float[Tensor, " inp"]],
) -> tuple[Float[Tensor, " inp"], list[int]]:
    r"""Round all weights of a row, one by one (the lecture's algorithm 2, the paper's 3).

    The rule for outliers is not printed in it, and not part of it here.

    Args:
        row: w, (inp,), float32 or float64; not modified.
        inverse: B, (inp, inp), of the same dtype; not modified.
        quant: maps a row to the nearest values of its grid, such as ``lambda w: grid.round(w[None])[0]``.
    Returns:
        The rounded row, and the order in which its weights were rounded.
    Raises:
        ValueError: malformed row or inverse.
    Guarantee: every value is one of ``quant``.
    Cost: 2·inp³ FLOPs; :func:`mlcomp.obs.obq` does all rows at once.
    """
    check_vector("row", row)
    check_like("inverse", inverse, (len(row), len(row)), "the row's weights")
    row, inverse = row.detach(), inverse.detach()
    w, b, left = row.clone(), inverse.clone(), torch.arange(len(row), device=row.device)
    rounded, order = torch.empty_like(row), []
    while len(left):
        q = quant(w)
        p = int(left[((q[left] - w[left]) ** 2 / b.diagonal()[left]).argmin()])
        rounded[p] = q[p]
        w = w - (w[p] - q[p]) / b[p, p] * b[:, p]
        b = b - torch.outer(b[:, p], b[p]) / b[p, p]
        left = left[left != p]
        order.append(p)
    return rounded, order
