import itertools

import numpy as np
import pytest
import torch

from mlcomp.prune import (
    bonsai,
    drawn_submodels,
    module_scores,
)

TOKENS = torch.randint(50, (3, 8), generator=torch.Generator().manual_seed(0))
COSTS = torch.tensor([0.5, -0.2, 3.0, 0.0, 1.0, 0.25, 2.0, 0.75], dtype=torch.float64)


def additive(removed):
    return 7.0 - float(COSTS[removed].sum())


def test_an_additive_utility_comes_back_exactly():
    drawn = drawn_submodels(torch.ones(8, dtype=torch.bool), 40, share=0.3, seed=0)
    losses = torch.tensor([7.0 - additive(row) for row in drawn], dtype=torch.float64)
    # 40 equations in float64, condition below 10
    torch.testing.assert_close(module_scores(drawn, losses, ridge=0.0), COSTS, rtol=0, atol=1e-12)
    assert (module_scores(drawn, losses, ridge=5.0) - COSTS).abs().max() > 0.1


@pytest.mark.parametrize("ridge", [0.1, 3.0])
def test_ridge_regression_of_another_library(ridge):
    linear_model = pytest.importorskip("sklearn.linear_model")
    g = torch.Generator().manual_seed(1)
    removed, losses = torch.rand(30, 9, generator=g) < 0.3, torch.randn(30, generator=g, dtype=torch.float64)
    fit = linear_model.Ridge(ridge, fit_intercept=False).fit(removed.numpy().astype(np.float64), losses.numpy())
    torch.testing.assert_close(
        module_scores(removed, losses, ridge=ridge), torch.tensor(fit.coef_), rtol=1e-9, atol=0
    )


def test_submodels():
    present = torch.tensor([True, False] * 10)
    drawn = drawn_submodels(present, 500, share=0.3, seed=3)
    assert drawn[:, ~present].all() and (drawn[:, present].sum(1) == 3).all()
    # each present module in 150 of 500 draws, give or take four standard deviations of 10
    assert (drawn[:, present].sum(0) - 150).abs().max() < 41
    assert torch.equal(drawn, drawn_submodels(present, 500, share=0.3, seed=3))
    assert not torch.equal(drawn, drawn_submodels(present, 500, share=0.3, seed=4))
    assert (drawn_submodels(present, 4, share=0.01, seed=0)[:, present].sum(1) == 1).all()


def best(sizes, budget, layers):
    """The removal that costs least per parameter, module by module, by looking at all of them in order."""
    removed = []
    for module in sorted(range(8), key=lambda i: float(COSTS[i] / sizes[i])):
        left = [i for i in range(8) if layers[i] == layers[module] and i not in removed]
        if len(left) == 1:
            continue
        if sum(float(sizes[i]) for i in [*removed, module]) > budget * float(sizes.sum()):
            break
        removed.append(module)
    return sorted(removed)


@pytest.mark.parametrize("rounds", [1, 3])
def test_the_modules_that_cost_least_per_parameter_go(rounds):
    sizes = torch.tensor([1.0, 2, 1, 2, 1, 2, 1, 2])
    layers = [0, 0, 1, 1, 2, 2, 3, 3]
    for sparsity in (0.3, 0.5):
        found = bonsai(
            additive, sizes, sparsity=sparsity, rounds=rounds, samples=60, share=0.3, ridge=0.0, layers=layers
        )
        if rounds == 1:
            assert found.removed.nonzero().flatten().tolist() == best(sizes, sparsity, layers)
        assert float(sizes[found.removed].sum()) <= sparsity * 12
        assert found.evaluations == rounds * 61 and len(found.scores) == rounds
        there = ~found.scores[-1].isnan()
        torch.testing.assert_close(found.scores[-1][there], COSTS[there], rtol=0, atol=1e-9)
        for layer in range(4):
            assert int((~found.removed[2 * layer : 2 * layer + 2]).sum()) >= 1
    large = torch.tensor([1.0, 2, 1, 2, 10, 2, 1, 2])  # module 4 costs much, and little for each parameter
    found = bonsai(additive, large, sparsity=0.7, samples=60, share=0.3, ridge=0.0, layers=layers)
    assert found.removed.nonzero().flatten().tolist() == best(large, 0.7, layers) == [1, 3, 4]
    any_may_go = bonsai(additive, sizes, sparsity=0.5, samples=60, share=0.3, ridge=0.0).removed
    assert any_may_go.nonzero().flatten().tolist() == [0, 1, 3, 5][1:]


def test_each_round_looks_at_what_is_left():
    seen = []

    def utility(removed):
        seen.append(removed.clone())
        removed[:] = True  # the mask is a copy: this harms nothing
        return additive(seen[-1])

    found = bonsai(utility, torch.ones(8), sparsity=0.5, rounds=2, samples=20, share=0.3, ridge=0.0)
    assert len(seen) == 42 and not seen[0].any() and seen[21].sum() == 2
    assert all((row & seen[21]).sum() == 2 for row in seen[21:])
    assert found.removed.nonzero().flatten().tolist() == [0, 1, 3, 5]
    assert found.scores[1].isnan().nonzero().flatten().tolist() == [1, 3]


def test_leave_one_out_is_a_submodel():
    """All submodels of three modules by hand: the coefficients minimize the sum of squares."""
    utilities = {mask: float(i * i % 7) for i, mask in enumerate(itertools.product([False, True], repeat=3))}
    rows = torch.tensor(list(utilities))
    losses = utilities[False, False, False] - torch.tensor(list(utilities.values()), dtype=torch.float64)
    beta = module_scores(rows, losses, ridge=0.5)
    cost = lambda b: float((losses - rows.double() @ b).square().sum() + 0.5 * b.square().sum())  # noqa: E731
    for direction in torch.eye(3, dtype=torch.float64):
        for step in (1e-3, -1e-3):
            assert cost(beta + step * direction) > cost(beta)


def test_bad_input(as_user):
    sizes = torch.ones(8)
    for name, value in (
        ("sparsity", 0.0),
        ("sparsity", 1.0),
        ("share", 1.0),
        ("rounds", 0),
        ("samples", 0),
        ("ridge", -1),
    ):
        with pytest.raises(ValueError, match=name):
            bonsai(additive, sizes, **{"sparsity": 0.2} | {name: value})
    with pytest.raises(ValueError, match="sizes must be"):
        bonsai(additive, torch.zeros(8), sparsity=0.2)
    with pytest.raises(ValueError, match="a number for each of 8 modules, got 3"):
        bonsai(additive, sizes, sparsity=0.2, layers=[0, 1, 2])
    with pytest.raises(ValueError, match="the utility must be a finite number"):
        bonsai(lambda removed: float("nan"), sizes, sparsity=0.2)
    with pytest.raises(ValueError, match="no module is present"):
        drawn_submodels(torch.zeros(3, dtype=torch.bool), 2, share=0.5, seed=0)
    with pytest.raises(ValueError, match="losses holds 1 NaN"):
        module_scores(torch.ones(1, 2, dtype=torch.bool), torch.tensor([float("inf")]))
    with pytest.raises(ValueError, match=r"got \(2, 3\), \(3,\)"):
        module_scores(torch.ones(2, 3, dtype=torch.bool), torch.zeros(3))
