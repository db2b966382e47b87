"""The printed algorithms against what they stand for: at every step, what is left solved from scratch."""

import pytest
import torch

from mlcomp.data import make_layer
from mlcomp.obs import layer_hessian, literal_exact_obs, literal_obq
from mlcomp.quant import fit_grid
from tests.obs.literal import algorithm_1, algorithm_2


def problem(inp=12, samples=40, seed=0):
    weight, x, _ = make_layer(1, inp, samples, seed=seed)
    return weight[0].double(), x.double(), layer_hessian(x.double())


def best_on(row, x, kept):
    """Return the least-squares row on the kept inputs and its error ‖δw X‖², by LAPACK on X itself."""
    fitted = torch.zeros_like(row)
    if kept:
        fitted[kept] = torch.linalg.lstsq(x[kept].T, (row @ x)[:, None]).solution[:, 0]
    return fitted, float(((fitted - row) @ x).square().sum())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_removal_is_the_cheapest_and_leaves_the_best_of_the_rest(seed):
    row, x, hessian = problem(seed=seed)
    inverse = torch.linalg.inv(hessian)
    before = row.clone(), inverse.clone()
    kept, error = list(range(12)), 0.0
    for k in range(1, 13):
        trials = {p: best_on(row, x, [q for q in kept if q != p])[1] for p in kept}
        cheapest = min(trials, key=trials.get)
        kept.remove(cheapest)
        pruned, order, losses = literal_exact_obs(row, inverse, k)
        assert order[-1] == cheapest and len(order) == len(losses) == k
        # Least squares in float64 at a condition of X below 100: 1e-9 leaves three digits of room.
        torch.testing.assert_close(pruned, best_on(row, x, kept)[0], rtol=1e-9, atol=1e-11)
        assert (pruned[order] == 0).all() and (pruned != 0).sum() == len(kept)
        assert losses[-1] == pytest.approx(trials[cheapest] - error, rel=1e-8)
        error = trials[cheapest]
    assert torch.equal(row, before[0]) and torch.equal(inverse, before[1])
    assert torch.equal(literal_exact_obs(row, inverse, 0)[0], row)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_every_rounding_is_the_cheapest_and_moves_the_rest_to_their_best(bits):
    row, x, hessian = problem(inp=9, seed=bits)
    grid = fit_grid(row[None], bits=bits)

    def quant(w):
        return grid.round(w[None])[0]

    rounded, order = literal_obq(row, torch.linalg.inv(hessian), quant)
    assert sorted(order) == list(range(9)) and set(rounded.tolist()) <= set(quant(rounded).tolist())
    fixed = {}
    for p in order:
        free = [q for q in range(9) if q not in fixed]
        # With some weights fixed the free ones have an optimum, and fixing one more adds e²/(2·[(H_free)⁻¹]_pp).
        known = torch.tensor([fixed.get(q, 0.0) for q in range(9)], dtype=torch.float64)
        now = known.clone()
        now[free] = torch.linalg.lstsq(x[free].T, ((row - known) @ x)[:, None]).solution[:, 0]
        curvature = torch.linalg.inv(hessian[free][:, free]).diagonal()
        assert p == free[int(((quant(now) - now)[free].square() / curvature).argmin())]
        assert float(rounded[p]) == float(quant(now)[p])
        fixed[p] = float(rounded[p])


def test_equal_scores_take_the_lowest_input():
    row, eye = torch.full((6,), 0.5), torch.eye(6)
    assert literal_exact_obs(row, eye, 4)[1] == [0, 1, 2, 3]
    assert literal_obq(row, eye, torch.round)[1] == list(range(6))


def test_the_rules_that_are_not_printed_leave_the_printed_algorithm_where_they_are_off():
    """The oracles of blocks, patterns, outliers and orders, without blocks, patterns, outliers and orders."""
    row, _, hessian = problem(inp=20, samples=60)
    inverse = torch.linalg.inv(hessian)
    pruned, order, losses = literal_exact_obs(row, inverse, 15)
    expected, expected_order, scores = algorithm_1(row, hessian, 15)
    torch.testing.assert_close(pruned, expected, rtol=1e-9, atol=1e-12)
    assert order == expected_order and losses == pytest.approx([s / 2 for s in scores], rel=1e-9)
    grid = fit_grid(row[None], bits=3)
    codes, expected_order = algorithm_2(row, hessian, grid, outliers=False)
    rounded, order = literal_obq(row, inverse, lambda w: grid.round(w[None])[0])
    assert order == expected_order and torch.equal(grid.encode(rounded[None])[0], codes)


@pytest.mark.parametrize("k", [-1, 13])
def test_bad_input(as_user, k):
    row, _, hessian = problem()
    with pytest.raises(ValueError, match="k must be a whole number from 0 to 12, got"):
        literal_exact_obs(row, hessian, k)
