import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from mlcomp.checks import removals
from mlcomp.prune import connection_sensitivity, layer_weights, snip


def small(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double()


def batch(n=20):
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 5, generator=g, dtype=torch.float64), torch.randint(3, (n,), generator=g)


def loss_with_switch(model, x, y, name, index, c):
    """L(c ⊙ w) with one switch at c and all others at 1."""
    weight = model.get_submodule(name).weight.detach().clone()
    weight.view(-1)[index] *= c
    out = functional_call(copy.deepcopy(model).train(), {f"{name}.weight": weight}, x)
    return float(F.cross_entropy(out, y).detach())


def test_is_the_derivative_of_the_loss_by_the_switch():
    """Definition (4) of the paper by central differences, each connection by itself."""
    model, (x, y) = small().eval(), batch()
    scores = connection_sensitivity(model, x, y)
    assert list(scores) == ["0", "3"]
    h = 1e-5
    for name, score in scores.items():
        for index in range(score.numel()):
            up, down = (loss_with_switch(model, x, y, name, index, 1 + s * h) for s in (1, -1))
            # Central differences err by h²·L'''/6 ≈ 1e-10 and by rounding, 1e-16/h = 1e-11.
            assert abs(up - down) / (2 * h) == pytest.approx(float(score.view(-1)[index]), abs=1e-9)


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.8, 1.0])
def test_the_least_sensitive_go_over_all_layers(sparsity):
    model, (x, y) = small(), batch()
    scores, pruned = connection_sensitivity(model, x, y), snip(model, x, y, sparsity=sparsity)
    together = torch.cat([s.flatten() for s in scores.values()])
    removed = torch.cat([(p == 0).flatten() for p in pruned.values()])
    assert int(removed.sum()) == removals(sparsity, 48)
    if 0 < sparsity < 1:
        assert together[removed].max() <= together[~removed].min()
    weights = layer_weights(model)
    assert all(torch.equal(p[p != 0], weights[n][p != 0]) for n, p in pruned.items())


def test_zero_gradients_score_zero_whatever_the_weight():
    """An input that is always 0 has weights that the loss cannot feel, however large."""
    model, (x, y) = small(), batch()
    x[:, 2] = 0
    with torch.no_grad():
        model[0].weight[:, 2] = 100
    pruned = snip(model, x, y, sparsity=6 / 48)
    assert (pruned["0"][:, 2] == 0).all() and int((pruned["0"] == 0).sum()) == 6 and pruned["3"].all()


def test_layers_loss_and_shared_state():
    model, (x, y) = small(), batch()
    model[3].weight.requires_grad_(False)
    state, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    scores = connection_sensitivity(model, x, y, layers=["3"], loss=lambda out, labels: out[:, 0].mean())
    assert list(scores) == ["3"] and scores["3"][0].all() and not scores["3"][1:].any()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and not model[3].weight.requires_grad
    assert torch.equal(torch.get_rng_state(), rng)
    with torch.no_grad():  # whatever the caller has set
        assert torch.equal(
            connection_sensitivity(model, x, y, layers=["3"])["3"], connection_sensitivity(model, x, y)["3"]
        )


def test_dropout_follows_the_seed():
    model, (x, y) = nn.Sequential(small(), nn.Dropout(0.5), nn.Linear(3, 3).double()), batch()
    a, b, c = (connection_sensitivity(model, x, y, seed=s)["2"] for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_bad_input(as_user):
    model, (x, y) = small(), batch()
    with pytest.raises(ValueError, match="sparsity is the share"):
        snip(model, x, y, sparsity=2.0)
    with pytest.raises(ValueError, match="same length"):
        snip(model, x, y[:-1], sparsity=0.5)
    with pytest.raises(ValueError, match="inputs holds"):
        snip(model, x / 0, y, sparsity=0.5)
    with pytest.raises(ValueError, match="the loss holds"):
        snip(model, x, y, sparsity=0.5, loss=lambda out, labels: out.sum() / 0)
    with pytest.raises(ValueError, match="no layer 'x'"):
        snip(model, x, y, sparsity=0.5, layers=["x"])
    model.add_module("unused", nn.Identity())
    model.unused.inner = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"'unused.inner' has no part"):
        snip(model, x, y, sparsity=0.5)
