import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mlcomp.checks import removals
from mlcomp.prune import gradient_flow, grasp, layer_weights


def small(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double()


def batch(n=20):
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 5, generator=g, dtype=torch.float64), torch.randint(3, (n,), generator=g)


def squared_gradient(model, x, y, temperature):
    """gᵀg over the layers' weights."""
    model = copy.deepcopy(model).train()
    weights = [model[0].weight, model[3].weight]
    return sum(
        float(g.square().sum()) for g in torch.autograd.grad(F.cross_entropy(model(x) / temperature, y), weights)
    )


@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_is_half_the_derivative_of_the_squared_gradient_by_each_switch(temperature):
    """d gᵀg / dc_q at c = 1 of the weights c ⊙ θ is 2 θ_q (Hg)_q: central differences, sign included."""
    model, (x, y) = small(), batch()
    scores = gradient_flow(model, x, y, temperature=temperature)
    h = 1e-4
    for name, score in scores.items():
        for index in range(score.numel()):
            ends = []
            for sign in (1, -1):
                moved = copy.deepcopy(model)
                with torch.no_grad():
                    moved.get_submodule(name).weight.view(-1)[index] *= 1 + sign * h
                ends.append(squared_gradient(moved, x, y, temperature))
            # Central differences err by h² times a third derivative of about 1, and by rounding, 1e-16/h.
            assert (ends[0] - ends[1]) / (4 * h) == pytest.approx(float(score.view(-1)[index]), abs=1e-7)


def test_what_the_gradient_needs_most_stays():
    model, (x, y) = small(), batch()
    scores = gradient_flow(model, x, y, temperature=2.0)
    pruned = grasp(model, x, y, sparsity=0.5, temperature=2.0)
    together = torch.cat([s.flatten() for s in scores.values()])
    removed = torch.cat([(p == 0).flatten() for p in pruned.values()])
    assert int(removed.sum()) == removals(0.5, 48)
    assert together[removed].max() <= together[~removed].min()
    weights = layer_weights(model)
    assert all(torch.equal(p[p != 0], weights[n][p != 0]) for n, p in pruned.items())


def test_model_and_random_state_stay_and_a_linear_loss_scores_nothing():
    model, (x, y) = small(), batch()
    state, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    gradient_flow(model, x, y)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and torch.equal(torch.get_rng_state(), rng)
    linear = nn.Linear(5, 3).double()
    scores = gradient_flow(linear, x, y, loss=lambda out, labels: out.mean())
    assert list(scores) == [""] and not scores[""].any()


def test_bad_input_is_refused():
    model, (x, y) = small(), batch()
    with pytest.raises(ValueError, match="temperature"):
        grasp(model, x, y, sparsity=0.5, temperature=0.0)
    with pytest.raises(ValueError, match="same length"):
        gradient_flow(model, x, y[:3])
    with pytest.raises(ValueError, match="no part in the loss"):
        gradient_flow(Half(), x, y)


class Half(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.idle = nn.Linear(5, 3).double(), nn.Linear(5, 3).double()

    def forward(self, x):
        return self.used(x).tanh()
