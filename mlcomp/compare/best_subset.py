r"""The best weights of a row to remove there are, the others refitted: best subset selection by branch and bound.

Notation: H = 2XXᵀ, w row, R the removed inputs, $G = (H_{UU})^{-1}$ on the inputs U that are left; the least error
with R removed is $E(R) = \tfrac12\, w_R^\top ([H^{-1}]_{RR})^{-1} w_R$, and one more removal i adds
$w_i^2 / (2 G_{ii})$ with the refitted w.
Source: Furnival and Wilson 1974, Technometrics 16(4) (leaps and bounds); the problem is in section 4 of Kuzmin et al.
2023, arXiv:2307.02973, solved there as a mixed-integer programme.   Syllabus: 1.22
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mlcomp.checks import check_hessian, check_sparsity, check_vector, check_weight, check_whole, narrowed, removals
from mlcomp.context import isolated


@dataclass(frozen=True)
class BestSubset:
    """The weights removed, the refitted row, its error, the nodes visited, and whether no other choice is better."""

    removed: Bool[Tensor, " inp"]
    row: Float[Tensor, " inp"]
    error: float
    nodes: int
    proved: bool


@isolated
def best_subset(
    hessian: Float[Tensor, "inp inp"], row: Float[Tensor, " inp"], *, remove: int, max_nodes: int = 1_000_000
) -> BestSubset:
    r"""Remove ``remove`` weights and refit the rest so that $\tfrac12 (\hat w - w)^\top H (\hat w - w)$ is least.

    Args:
        hessian: (inp, inp), positive definite; not modified.
        row: (inp,) float weights; not modified.
        remove: how many, 0 to inp.
        max_nodes: stop after so many nodes; the answer is then marked ``proved=False``.
    Raises:
        ValueError: malformed H or row, ``remove`` out of range, H singular (beyond dead inputs).
    Guarantee: if ``proved``, no other choice has a smaller error, up to float64 rounding. Either way it is at most
        that of the greedy choice (ExactOBS), which is the first one visited. Dead inputs (zero diagonal) go first:
        they cost nothing; if fewer are removed than are dead, those of the highest index keep their weights.
    Cost: exponential at worst; half of 24 inputs of the synthetic layer take 0.1 s, half of 30 half a second.
    """
    check_vector("row", row)
    hessian = check_hessian(hessian, len(row))
    check_whole("remove", remove, 0, len(row))
    check_whole("max_nodes", max_nodes, 1)
    w = row.detach().double()
    h = (hessian.double() + hessian.double().T) / 2
    live = (h.diagonal() > 0).nonzero()[:, 0]
    dead = (h.diagonal() == 0).nonzero()[:, 0]
    removed = torch.zeros(len(w), dtype=torch.bool)
    removed[dead[:remove]] = True
    left = remove - min(remove, len(dead))
    nodes, proved = 0, True
    if left:
        chosen, nodes, proved = _Search(h[live][:, live], w[live], left, max_nodes).run()
        removed[live[chosen]] = True
    fitted = _refit(h, w, removed)
    delta = fitted - w
    return BestSubset(removed, fitted, float(delta @ h @ delta / 2), nodes, proved)


@isolated
def best_pruned(
    weight: Float[Tensor, "out inp"],
    hessian: Float[Tensor, "inp inp"],
    *,
    sparsity: float,
    max_nodes: int = 1_000_000,
) -> Float[Tensor, "out inp"]:
    """Prune each row to the same share of zeros with the least output error there is.

    Args:
        weight: (out, inp), up to about 30 inputs; not modified.
        hessian, max_nodes: see :func:`best_subset`.
        sparsity: share of zeros in each row; the count is rounded half up.
    Raises:
        ValueError: malformed weight, H or sparsity, H singular. RuntimeError: ``max_nodes`` did not suffice.
    Guarantee: no pruned weight with as many zeros in each row has a smaller error in any row.
    """
    weight = check_weight(weight)
    check_sparsity(sparsity)
    rows = []
    for i, row in enumerate(weight):
        found = best_subset(hessian, row, remove=removals(sparsity, len(row)), max_nodes=max_nodes)
        if not found.proved:
            raise RuntimeError(f"row {i} needs more than max_nodes={max_nodes} nodes: raise it, or use exact_obs")
        rows.append(found.row)
    return narrowed(torch.stack(rows), weight.dtype)


def _refit(h: Tensor, w: Tensor, removed: Tensor) -> Tensor:
    """Return w with the removed entries 0 and the kept live ones at their optimum: H_KK·δ_K = H_KR·w_R."""
    fitted = w.masked_fill(removed, 0)
    kept = (~removed & (h.diagonal() > 0)).nonzero()[:, 0]
    gone = removed.nonzero()[:, 0]
    if len(kept) and len(gone):
        fitted[kept] += torch.linalg.solve(h[kept][:, kept], h[kept][:, gone] @ w[gone])
    return fitted


class _Search:
    """Depth first; a node has some inputs removed, some kept for good, and some still open."""

    def __init__(self, h: Tensor, w: Tensor, remove: int, max_nodes: int) -> None:
        factor, info = torch.linalg.cholesky_ex(h)
        # Pivots at the rounding level of H's diagonal are noise, not curvature.
        if int(info) or bool((factor.diagonal() ** 2 < 1e-13 * h.diagonal()).any()):
            raise ValueError(
                "the Hessian is singular, so the best subset is not unique: use more samples than inputs, or add to "
                "its diagonal"
            )
        self.start = torch.cholesky_inverse(factor), w
        self.remove, self.max_nodes = remove, max_nodes
        self.best, self.nodes, self.stopped = math.inf, 0, False
        self.chosen: list[int] | None = None

    def run(self) -> tuple[Tensor, int, bool]:
        inverse, w = self.start
        self._visit(inverse, w, torch.arange(len(w)), len(w), 0.0, [], self.remove)
        return torch.tensor(self.chosen), self.nodes, not self.stopped

    def _visit(self, g: Tensor, w: Tensor, names: Tensor, open_: int, error: float, gone: list, left: int) -> None:
        """Search below one node. The first ``open_`` rows of g, w and names are open, the others kept for good."""
        self.nodes += 1
        if self.nodes > self.max_nodes and self.chosen is not None:
            self.stopped = True
            return
        single = error + w[:open_] ** 2 / (2 * g.diagonal()[:open_])
        if left == 1:
            self._leaf(single, [[i] for i in range(open_)], names, gone)
            return
        if left == 2:
            self._pairs(g, w, names, open_, error, gone)
            return
        if error + self._least_to_pay(g[:open_, :open_], single - error, left) >= self.best:
            return
        # Child j removes the j-th cheapest and keeps all cheaper ones: the first dive is the greedy choice, and later
        # children have little left to choose from, all of it dear.
        single, order = single.sort()
        order = torch.cat([order, torch.arange(open_, len(w))])
        g, w, names = g[order][:, order], w[order], names[order]
        for j in range(open_ - left + 1):
            # The error only grows, and the last of the ``left`` to go costs at least its single price.
            if self.stopped or float(single[j + left - 1]) >= self.best:
                return
            rest = [*range(j + 1, len(w)), *range(j)]  # open ones first, then those kept for good
            pull = g[rest, j]
            child = g[rest][:, rest] - torch.outer(pull, pull) / g[j, j]
            moved = w[rest] - pull * (w[j] / g[j, j])
            self._visit(child, moved, names[rest], open_ - j - 1, float(single[j]), [*gone, int(names[j])], left - 1)

    def _least_to_pay(self, g: Tensor, prices: Tensor, left: int) -> float:
        r"""Return a lower bound on the price of removing any ``left`` open inputs.

        With C the correlation matrix of G, $(G_{SS})^{-1} \succeq \mathrm{diag}(G_{SS})^{-1}/\lambda_{max}(C)$, so a
        set costs at least its single prices over λ_max. Made larger by 1e-9, because λ_max is rounded.
        """
        scale = g.diagonal().rsqrt()
        largest = float(torch.linalg.eigvalsh(g * scale * scale[:, None])[-1]) * (1 + 1e-9)
        return float(prices.sort().values[:left].sum()) / largest

    def _pairs(self, g: Tensor, w: Tensor, names: Tensor, open_: int, error: float, gone: list) -> None:
        """Try all pairs at once: ½ w_Sᵀ (G_SS)⁻¹ w_S for 2×2 blocks."""
        first, second = torch.triu_indices(open_, open_, 1)
        a, b, c = g[first, first], g[second, second], g[first, second]
        u, v = w[first], w[second]
        price = (b * u**2 - 2 * c * u * v + a * v**2) / (2 * (a * b - c**2))
        self._leaf(error + price, torch.stack([first, second], 1).tolist(), names, gone)

    def _leaf(self, errors: Tensor, sets: list[list[int]], names: Tensor, gone: list) -> None:
        at = int(errors.argmin())
        if float(errors[at]) < self.best:
            self.best = float(errors[at])
            self.chosen = [*gone, *(int(names[i]) for i in sets[at])]
