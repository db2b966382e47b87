r"""Robust PCA: split a matrix into a sparse and a low-rank part, W = S + L.

Notation: W (m, n), ‖·‖* the sum of singular values, ‖·‖₁ the sum of absolute entries, λ the weight of S, Y the
multiplier of the constraint, μ the weight of its square.
Source: Candès, Li, Ma, Wright 2011, arXiv:0912.3599, eq. (1.1) (principal component pursuit); Lin, Chen, Ma 2010,
arXiv:1009.5055, algorithm 5 (inexact augmented Lagrangian); Netrapalli et al. 2014, arXiv:1410.7660 (alternating
projections, there in stages).   Syllabus: 3.01
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import check_choice, check_interval, check_matrix, check_positive, check_whole
from mlcomp.context import isolated


@dataclass(frozen=True)
class SparsePlusLowRank:
    """W ≈ sparse + low_rank.

    Attributes:
        sparse: S (m, n) float64.
        low_rank: L (m, n) float64.
        rank: of L.
        residual: ‖W − S − L‖/‖W‖, Frobenius.
        gap: of the convex method: its objective is at most this share above the least one, apart from the residual.
            None for alternating projections, which certify nothing.
        steps: singular value decompositions that were taken.
    """

    sparse: Float[Tensor, "m n"]
    low_rank: Float[Tensor, "m n"]
    rank: int
    residual: float
    gap: float | None
    steps: int


@isolated
def robust_pca(
    matrix: Float[Tensor, "m n"],
    *,
    weight: float | None = None,
    growth: float = 1.1,
    tolerance: float = 1e-7,
    max_steps: int = 500,
) -> SparsePlusLowRank:
    r"""Solve principal component pursuit: least $\lVert L\rVert_* + \lambda\lVert S\rVert_1$ with W = S + L.

    Each step shrinks the singular values of W − S + Y/μ, then the entries of W − L + Y/μ, then adds μ times the
    residual to Y, and raises μ.

    Args:
        matrix: W (m, n), any float dtype, computed in float64; not modified.
        weight: λ > 0; None: $1/\sqrt{\max(m, n)}$, with which the recovery theorem holds.
        growth: factor of μ in each step, above 1. With a large one the steps end before they are at the minimum, and
            ``gap`` is not small: such a result says nothing about the problem.
        tolerance: stop at this residual.
        max_steps: stop there in any case; ``residual`` says what is missing.
    Raises:
        ValueError: malformed matrix, a weight that is not positive, growth ≤ 1, tolerance outside (0, 1).
    Guarantee: residual and gap are those of the result: Y, scaled to ‖Y‖₂ ≤ 1 and |Y| ≤ λ, bounds the objective from
        below by ⟨Y, W⟩. Zeros of S are exact.
    Cost: one singular value decomposition a step, 60 to 120 steps.
    Deviations: Lin et al. raise μ by 1.5 and need 20 to 40 steps, but miss the minimum near the boundary of recovery.
    """
    check_matrix("matrix", matrix)
    check_interval("growth", growth, "(1, inf)")
    check_interval("tolerance", tolerance, "(0, 1)")
    check_whole("max_steps", max_steps, 1)
    lam = max(matrix.shape) ** -0.5 if weight is None else weight
    check_positive("weight", lam)
    w = matrix.detach().double()
    size, spectral = w.norm(), torch.linalg.matrix_norm(w, 2)
    if not size:
        return SparsePlusLowRank(w.clone(), w.clone(), 0, 0.0, 0.0, 0)
    y = w / torch.maximum(spectral, w.abs().max() / lam)
    s, mu, steps, residual = torch.zeros_like(w), 1.25 / spectral, 0, size + 1
    low = s
    singular = w.new_zeros(1)
    while residual > tolerance * size and steps < max_steps:
        u, sigma, vh = torch.linalg.svd(w - s + y / mu, full_matrices=False)
        singular = (sigma - 1 / mu).clamp(min=0)
        low = (u * singular) @ vh
        s = _soft(w - low + y / mu, lam / mu)
        rest = w - low - s
        y, mu, residual, steps = y + mu * rest, mu * growth, rest.norm(), steps + 1
    objective = float(singular.sum() + lam * s.abs().sum())
    fits = torch.maximum(torch.linalg.matrix_norm(y, 2), y.abs().max() / lam).clamp(min=1)
    gap = max(0.0, 1 - float((y * w).sum() / fits) / objective) if objective else 0.0
    return SparsePlusLowRank(s, low, int((singular > 0).sum()), float(residual / size), gap, steps)


def _soft(x: Tensor, threshold: Tensor) -> Tensor:
    return x.sign() * (x.abs() - threshold).clamp(min=0)


@isolated
def alternating_projections(
    matrix: Float[Tensor, "m n"],
    *,
    rank: int,
    nonzeros: int,
    start: str = "sparse",
    tolerance: float = 1e-7,
    max_steps: int = 100,
) -> SparsePlusLowRank:
    r"""Reduce $\lVert W - S - L\rVert$ over S with k entries and L of rank r: the best L for S, the best S for L, …

    Args:
        matrix: W (m, n), any float dtype, computed in float64; not modified.
        rank: r of L, 0 to min(m, n).
        nonzeros: k, the largest number of entries of S, 0 to m·n.
        start: "sparse": S begins with the k largest entries of W; "low-rank": L begins with its singular vectors.
        tolerance: stop at this residual, or when a step makes it smaller by less than this.
        max_steps: stop there in any case.
    Raises:
        ValueError: malformed matrix, rank or nonzeros outside their range, tolerance outside (0, 1).
    Guarantee: the residual never rises from step to step; S has at most k entries and L at most rank r.
    Cost: one singular value decomposition a step.
    Deviations: Netrapalli et al. raise the rank in stages, with thresholds that fall, and prove recovery; this plain
        form may be caught where S and L have taken each other's parts.
    """
    check_matrix("matrix", matrix)
    check_whole("rank", rank, 0, min(matrix.shape))
    check_whole("nonzeros", nonzeros, 0, matrix.numel())
    check_choice("start", start, ("sparse", "low-rank"))
    check_interval("tolerance", tolerance, "(0, 1)")
    check_whole("max_steps", max_steps, 1)
    w = matrix.detach().double()
    size = float(w.norm()) or 1.0
    s = low = torch.zeros_like(w)
    if start == "sparse":
        s = _largest(w, nonzeros)
    before, residual, steps = torch.inf, 1.0, 0
    while residual > tolerance and before - residual > tolerance and steps < max_steps:
        u, sigma, vh = torch.linalg.svd(w - s, full_matrices=False)
        low = (u[:, :rank] * sigma[:rank]) @ vh[:rank]
        s = _largest(w - low, nonzeros)
        before, residual, steps = residual if steps else torch.inf, float((w - low - s).norm()) / size, steps + 1
    return SparsePlusLowRank(s, low, min(rank, int((sigma[:rank] > 0).sum())), residual, None, steps)


def _largest(x: Tensor, count: int) -> Tensor:
    """Return ``x`` with all but its ``count`` largest entries set to zero."""
    index = x.abs().flatten().topk(count).indices
    kept = torch.zeros_like(x).flatten()
    kept[index] = x.flatten()[index]
    return kept.view_as(x)


@isolated
def planted_matrix(
    rows: int, columns: int, *, rank: int, share: float, spike: float = 10.0, seed: int = 0
) -> tuple[Float[Tensor, "m n"], Float[Tensor, "m n"]]:
    """Return a random L of a rank and a random S with a share of entries, float64, to be found again in their sum.

    L is a product of Gaussian factors, its entries have variance 1. The places of S are uniform, and so are its
    entries, between −``spike`` and ``spike``.

    Raises:
        ValueError: sizes below 1, a rank outside 0 … min(rows, columns), a share outside [0, 1], spike ≤ 0.
    """
    check_whole("rows", rows, 1)
    check_whole("columns", columns, 1)
    check_whole("rank", rank, 0, min(rows, columns))
    check_interval("share", share, "[0, 1]")
    check_positive("spike", spike)
    g = torch.Generator().manual_seed(seed)
    left = torch.randn(rows, rank, generator=g, dtype=torch.float64) / max(1, rank) ** 0.5
    right = torch.randn(rank, columns, generator=g, dtype=torch.float64)
    places = torch.randperm(rows * columns, generator=g)[: round(share * rows * columns)]
    s = torch.zeros(rows * columns, dtype=torch.float64)
    s[places] = spike * (2 * torch.rand(len(places), generator=g, dtype=torch.float64) - 1)
    return left @ right, s.view(rows, columns)
