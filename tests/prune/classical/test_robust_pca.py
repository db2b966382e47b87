import numpy as np
import pytest
import torch
from scipy import sparse

from mlcomp.prune.classical import alternating_projections, planted_matrix, robust_pca


def error(result, low):
    return float((result.low_rank - low).norm() / low.norm())


@pytest.mark.parametrize(("rank", "share"), [(2, 0.05), (3, 0.15), (4, 0.05)])
def test_planted_parts_are_found(rank, share):
    low, spikes = planted_matrix(60, 50, rank=rank, share=share)
    result = robust_pca(low + spikes)
    assert result.rank == rank and error(result, low) < 1e-5
    assert result.residual < 1e-7 and result.gap < 1e-3
    torch.testing.assert_close(result.sparse, spikes, rtol=0, atol=1e-4)
    told = alternating_projections(low + spikes, rank=rank, nonzeros=int((spikes != 0).sum()))
    assert error(told, low) < 1e-4 and told.residual < 1e-5


def conic_objective(w: np.ndarray, lam: float) -> float:
    """Return the least ‖L‖* + λ‖S‖₁ by an interior-point solver.

    ‖L‖* is half the least tr P + tr Q over [[P, L], [Lᵀ, Q]] ⪰ 0.
    """
    clarabel = pytest.importorskip("clarabel")
    m, n = w.shape
    size = m + n
    # Variables: the upper triangle of the semidefinite matrix, column by column, then t ≥ |W − L|.
    place, k = {}, 0
    for j in range(size):
        for i in range(j + 1):
            place[i, j], k = k, k + 1
    cost = np.zeros(k + m * n)
    cost[[place[i, i] for i in range(size)]] = 0.5
    cost[k:] = lam
    scale = np.array([1.0 if i == j else 2**0.5 for (i, j) in place])  # clarabel's triangles carry √2
    cone = sparse.hstack([-sparse.diags(scale), sparse.csc_matrix((k, m * n))])
    picks = sparse.csc_matrix(
        (np.ones(m * n), (np.arange(m * n), [place[i, m + j] for i in range(m) for j in range(n)])), shape=(m * n, k)
    )
    eye = sparse.identity(m * n)
    upper = sparse.hstack([-picks, -eye])  # W − L ≤ t
    lower = sparse.hstack([picks, -eye])  # L − W ≤ t
    a = sparse.vstack([cone, upper, lower]).tocsc()
    b = np.concatenate([np.zeros(k), -w.ravel(), w.ravel()])
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    cones = [clarabel.PSDTriangleConeT(size), clarabel.NonnegativeConeT(2 * m * n)]
    zero = sparse.csc_matrix((len(cost), len(cost)))
    return clarabel.DefaultSolver(zero, cost, a, b, cones, settings).solve().obj_val


@pytest.mark.parametrize("seed", [0, 1])
def test_objective_is_that_of_an_interior_point_solver(seed):
    w = torch.randn(5, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)  # nothing planted
    for weight in (0.2, 7**-0.5, 0.6):
        result = robust_pca(w, weight=weight, growth=1.02, tolerance=1e-9, max_steps=3000)
        ours = float(torch.linalg.svdvals(result.low_rank).sum() + weight * result.sparse.abs().sum())
        least = conic_objective(w.numpy(), weight)
        assert ours == pytest.approx(least, rel=5e-5)
        assert 1 - least / ours < result.gap + 1e-7 < 2e-3  # a bound on what the line above differs by


def test_the_gap_tells_a_result_that_is_not_the_minimum():
    low, spikes = planted_matrix(60, 60, rank=12, share=0.05)
    fast, slow = robust_pca(low + spikes, growth=1.5), robust_pca(low + spikes, growth=1.05)
    assert fast.gap > 0.05 and error(fast, low) > 1e-3 and fast.residual < 1e-7
    assert slow.gap < 1e-3 and error(slow, low) < 1e-5 and slow.rank == 12


def test_weights_at_both_ends():
    w = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    assert float(robust_pca(w, weight=10.0).sparse.abs().max()) < 1e-6  # entries cost more than singular values
    assert robust_pca(w, weight=0.01).rank == 0
    nothing = robust_pca(torch.zeros(3, 4))
    assert nothing.rank == 0 and nothing.steps == 0 and not nothing.sparse.any()


def test_projections_are_exact_at_the_ends_and_never_get_worse():
    w = torch.randn(8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigma = torch.linalg.svdvals(w)
    low_only = alternating_projections(w, rank=2, nonzeros=0)
    assert low_only.residual == pytest.approx(float(sigma[2:].norm() / sigma.norm()))
    sparse_only = alternating_projections(w, rank=0, nonzeros=10)
    kept = w.abs().flatten().sort(descending=True).values[10:]
    assert sparse_only.residual == pytest.approx(float(kept.norm() / w.norm()))
    for start in ("sparse", "low-rank"):
        steps = [
            alternating_projections(w, rank=2, nonzeros=10, start=start, max_steps=k).residual for k in range(1, 8)
        ]
        assert steps == sorted(steps, reverse=True)
        full = alternating_projections(w, rank=2, nonzeros=10, start=start)
        assert int(full.sparse.count_nonzero()) <= 10 and int(torch.linalg.matrix_rank(full.low_rank)) == 2
        assert full.gap is None
        assert full.residual == pytest.approx(float((w - full.sparse - full.low_rank).norm() / w.norm()))


def test_planted_matrices_are_what_they_say():
    low, spikes = planted_matrix(30, 40, rank=4, share=0.1, spike=5.0, seed=3)
    assert int(torch.linalg.matrix_rank(low)) == 4 and int(spikes.count_nonzero()) == 120
    assert 4 < float(spikes.abs().max()) <= 5 and 0.7 < float(low.std()) < 1.4
    again = planted_matrix(30, 40, rank=4, share=0.1, spike=5.0, seed=3)
    assert torch.equal(again[0], low) and torch.equal(again[1], spikes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"matrix": torch.full((2, 2), torch.nan)}, "NaN"),
        ({"matrix": torch.ones(3)}, "matrix"),
        ({"weight": 0.0}, "weight"),
        ({"growth": 1.0}, "growth"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"max_steps": 0}, "max_steps"),
    ],
)
def test_bad_input_is_a_clear_error(as_user, change, message):
    with pytest.raises(ValueError, match=message):
        robust_pca(**{"matrix": torch.ones(3, 3)} | change)
    for bad in ({"rank": 4}, {"nonzeros": 10}, {"start": "svd"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            alternating_projections(torch.ones(3, 3), **{"rank": 1, "nonzeros": 2} | bad)
    with pytest.raises(ValueError, match="share"):
        planted_matrix(3, 3, rank=1, share=1.5)
