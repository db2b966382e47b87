import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.data import make_layer
from mlcomp.metrics import hessian_error
from mlcomp.obs import exact_obs, layer_hessian, sparsegpt
from mlcomp.prune import best_pruned, best_subset, magnitude
from tests.examples import examples


def problem(inp, seed, common=2.0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(inp, 3 * inp, generator=g, dtype=torch.float64)
    x += common * torch.randn(1, x.shape[1], generator=g, dtype=torch.float64)
    scale = torch.exp(torch.randn(inp, 1, generator=g, dtype=torch.float64))
    return x * scale, torch.randn(inp, generator=g, dtype=torch.float64)


def least_squares_error(x, row, keep):
    """Return ‖x_Kᵀ·w − xᵀ·row‖² at the best w, by least squares on the samples themselves."""
    y = x.T @ row
    if not keep:
        return float(y.square().sum())
    a = x[list(keep)].T
    return float((a @ torch.linalg.lstsq(a, y).solution - y).square().sum())


@examples(25)
@given(seed=st.integers(0, 10**6), inp=st.integers(1, 9), data=st.data())
def test_no_choice_of_the_same_size_is_better(seed, inp, data):
    remove = data.draw(st.integers(0, inp))
    x, row = problem(inp, seed)
    found = best_subset(2 * x @ x.T, row, remove=remove)
    errors = {k: least_squares_error(x, row, k) for k in itertools.combinations(range(inp), inp - remove)}
    least, whole = min(errors.values()), float((x.T @ row).square().sum())
    assert found.proved and int(found.removed.sum()) == remove
    assert found.error == pytest.approx(least, abs=1e-9 * whole)
    assert ((found.row == 0) == found.removed).all()
    # The row really has that error.
    assert float((x.T @ (found.row - row)).square().sum()) == pytest.approx(found.error, abs=1e-9 * whole)


@pytest.mark.parametrize("remove", [4, 7, 10])
def test_all_supports_of_fourteen_inputs(remove):
    x, row = problem(14, remove, common=0.5)
    hessian = 2 * x @ x.T
    masks = torch.tensor([s for s in itertools.combinations(range(14), remove)])
    inverse = torch.linalg.inv(hessian)
    blocks = inverse[masks[:, :, None], masks[:, None, :]]
    gone = row[masks]
    errors = (gone * torch.linalg.solve(blocks, gone)).sum(1) / 2
    found = best_subset(hessian, row, remove=remove)
    assert found.error == pytest.approx(float(errors.min()), rel=1e-8)
    assert sorted(found.removed.nonzero()[:, 0].tolist()) == masks[errors.argmin()].tolist()
    assert found.nodes < len(masks) / 2


@pytest.mark.parametrize("remove", [3, 5, 7])
def test_thirty_problems_in_which_weights_nearly_replace_each_other(remove):
    # Strong correlations: prices change most from step to step, so a bound that is too sharp shows.
    masks = torch.tensor(list(itertools.combinations(range(9), remove)))
    for seed in range(30):
        x, row = problem(9, seed, common=6.0)
        inverse = torch.linalg.inv(2 * x @ x.T)
        blocks, gone = inverse[masks[:, :, None], masks[:, None, :]], row[masks]
        least = float((gone * torch.linalg.solve(blocks, gone)).sum(1).min() / 2)
        assert best_subset(2 * x @ x.T, row, remove=remove).error == pytest.approx(least, rel=1e-6)


def test_greedy_is_not_always_best_and_a_stopped_search_is_greedy():
    beaten = 0
    for seed in range(12):
        weight, x, _ = make_layer(1, 16, 40, seed=seed)
        hessian = layer_hessian(x.double())
        greedy = exact_obs(weight, hessian, sparsity=0.75)
        greedy_error = float(((greedy - weight).double() @ hessian * (greedy - weight).double()).sum() / 2)
        found = best_subset(hessian, weight[0], remove=12)
        stopped = best_subset(hessian, weight[0], remove=12, max_nodes=1)
        assert found.error <= stopped.error * (1 + 1e-9) and stopped.error <= greedy_error * (1 + 1e-5)
        beaten += found.error < 0.99 * greedy_error
        if stopped.proved:
            assert stopped.error == found.error
    assert beaten >= 2


@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_no_pruner_is_better(sparsity):
    weight, x, _ = make_layer(4, 16, 60, seed=3)
    hessian = layer_hessian(x)
    best = best_pruned(weight, hessian, sparsity=sparsity)
    assert best.dtype == weight.dtype and ((best == 0).sum(1) == round(16 * sparsity)).all()
    least = hessian_error(weight, best, hessian)
    for rival in (
        magnitude(weight, sparsity=sparsity, scope="row"),
        exact_obs(weight, hessian, sparsity=sparsity, scope="row"),
        sparsegpt(weight, hessian, sparsity=sparsity, damp=0.0),
    ):
        if ((rival == 0).sum(1) == round(16 * sparsity)).all():
            assert least <= hessian_error(weight, rival, hessian) * (1 + 1e-5) + 1e-12


def test_independent_inputs_are_ranked_by_their_price():
    row = torch.tensor([1.0, -2.0, 0.5, 3.0])
    found = best_subset(torch.diag(torch.tensor([9.0, 1.0, 16.0, 0.1])), row, remove=2)
    assert found.removed.tolist() == [False, True, False, True]  # prices 9, 4, 4, 0.9: a tie of 4 and 4
    assert found.error == pytest.approx((4 + 0.9) / 2)


def test_dead_inputs_go_first_and_cost_nothing():
    x, row = problem(8, 0)
    x[2], x[5] = 0, 0
    hessian = 2 * x @ x.T
    one = best_subset(hessian, row, remove=1)
    assert one.removed.nonzero()[:, 0].tolist() == [2] and one.error == 0 and one.row[5] == row[5]
    four = best_subset(hessian, row, remove=4)
    assert four.removed[2] and four.removed[5]
    live = [0, 1, 3, 4, 6, 7]
    assert four.error == pytest.approx(best_subset(hessian[live][:, live], row[live], remove=2).error, rel=1e-9)
    nothing = best_subset(torch.zeros(3, 3), torch.ones(3), remove=3)
    assert nothing.error == 0 and nothing.removed.all()


def test_arguments_stay_as_they_were():
    x, row = problem(7, 1)
    hessian = 2 * x @ x.T
    before = hessian.clone(), row.clone()
    best_subset(hessian, row, remove=3)
    assert torch.equal(hessian, before[0]) and torch.equal(row, before[1])


def test_bad_input(as_user):
    hessian, row = torch.eye(3), torch.ones(3)
    for remove in (-1, 4, 1.0, True):
        with pytest.raises(ValueError, match="remove must be"):
            best_subset(hessian, row, remove=remove)
    for nodes in (0, 2.5, True):
        with pytest.raises(ValueError, match="max_nodes"):
            best_subset(hessian, row, remove=1, max_nodes=nodes)
    with pytest.raises(ValueError, match="row must be a vector"):
        best_subset(hessian, torch.ones(1, 3), remove=1)
    with pytest.raises(TypeError, match="floating point"):
        best_subset(hessian, torch.ones(3, dtype=torch.int64), remove=1)
    with pytest.raises(ValueError, match="NaN"):
        best_subset(hessian, torch.tensor([1.0, float("inf"), 0.0]), remove=1)
    with pytest.raises(ValueError, match="singular"):
        best_subset(torch.ones(3, 3), row, remove=1)
    with pytest.raises(ValueError, match="sparsity"):
        best_pruned(torch.ones(1, 3), hessian, sparsity=1.5)
    weight, x, _ = make_layer(1, 24, 60, seed=0)
    with pytest.raises(RuntimeError, match="max_nodes=2 nodes"):
        best_pruned(weight, layer_hessian(x), sparsity=0.75, max_nodes=2)
