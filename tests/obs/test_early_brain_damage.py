import pytest
import torch
from torch import nn
from torch.func import grad

from mlcomp.checks import removals
from mlcomp.obs import ebd_saliency, flatten_network, gauss_newton_diagonal, network_ebd, network_obd
from mlcomp.obs.network_hessian import network_with

CROSS_ENTROPY = nn.functional.cross_entropy


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    return model, torch.randn(40, 6), torch.randint(3, (40,))


def test_saliency_is_the_sum_of_its_three_terms_and_obds_without_a_gradient():
    w, g, h = drawn(4, 5), drawn(4, 5, seed=1), drawn(4, 5, seed=2).square() + 0.1
    expected = -g * w + h * w.square() / 2 + g.square() / (2 * h)
    torch.testing.assert_close(ebd_saliency(w, g, h), expected)
    torch.testing.assert_close(ebd_saliency(w, 0 * g, h), h * w.square() / 2)
    torch.testing.assert_close(ebd_saliency(0 * w, g, h), g.square() / (2 * h))
    assert (ebd_saliency(w, h * w, h) < 1e-15).all()  # the minimum lies at zero


def test_on_a_quadratic_loss_it_is_exact():
    # Not at the minimum: linear regression with the weights anywhere.
    x, y, theta = drawn(30, 5), drawn(30, seed=1), drawn(5, seed=2)

    def loss(t):
        return (x @ t - y).square().mean()

    h = 2 * x.square().mean(0)
    saliency = ebd_saliency(theta, grad(loss)(theta), h)
    for i in range(5):
        without = theta.clone()
        without[i] = 0
        line = theta + torch.linspace(-10, 10, 20_001, dtype=torch.float64)[:, None] * torch.eye(5)[i].double()
        least = (line @ x.T - y).square().mean(1).min()
        # The grid is 1e-3 wide, so the least value is found to h/2·(5e-4)².
        assert float(saliency[i]) == pytest.approx(float(loss(without) - least), abs=1e-6)


def test_network_counts_and_scores_are_those_of_gradient_and_gauss_newton(network):
    model, x, y = network
    result = network_ebd(model, x, y, CROSS_ENTROPY, sparsity=0.5)
    flat = flatten_network(model, x, y, CROSS_ENTROPY)
    g, h = grad(flat.loss)(flat.theta), gauss_newton_diagonal(flat)
    expected = (h * flat.theta - g).square() / (2 * h)
    saliency = torch.cat([s.flatten() for s in result.saliency.values()])
    torch.testing.assert_close(saliency, expected)
    assert sum(int((~k).sum()) for k in result.keep.values()) == removals(0.5, 45)
    assert result.predicted == pytest.approx(float(expected[flat.prunable].sort().values[:23].sum()))


def test_a_removed_weight_with_a_pull_is_revived_where_obd_keeps_it_out(network):
    model, x, y = network
    pruned = network_with(model, flatten_network(model, x, y, CROSS_ENTROPY).theta)
    needed = int(network_ebd(model, x, y, CROSS_ENTROPY, sparsity=0.5).saliency["2.weight"].argmax())
    with torch.no_grad():  # cut by mistake
        pruned[2].weight.view(-1)[needed] = 0
    by_obd = network_obd(pruned, x, y, CROSS_ENTROPY, sparsity=0.5).keep["2.weight"].flatten()
    by_ebd = network_ebd(pruned, x, y, CROSS_ENTROPY, sparsity=0.5).keep["2.weight"].flatten()
    assert not by_obd[needed] and by_ebd[needed]


def test_dead_weights_cost_nothing_and_the_model_stays(network):
    model, x, y = network
    x = x.clone()
    x[:, 2] = 0
    before = {k: v.clone() for k, v in model.state_dict().items()}
    result = network_ebd(model, x, y, CROSS_ENTROPY, sparsity=5 / 45)
    assert not result.keep["0.weight"][:, 2].any() and result.predicted == 0
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_bad_input_is_a_clear_error(as_user, network):
    w = torch.ones(3)
    with pytest.raises(ValueError, match="curvature"):
        ebd_saliency(w, w, -w)
    with pytest.raises(ValueError, match="curvature"):
        ebd_saliency(w, w, 0 * w)
    with pytest.raises(ValueError, match="gradient"):
        ebd_saliency(w, torch.ones(4), w)
    with pytest.raises(ValueError, match="NaN"):
        ebd_saliency(w, w * torch.nan, w)
    model, x, y = network
    with pytest.raises(ValueError, match="sparsity"):
        network_ebd(model, x, y, CROSS_ENTROPY, sparsity=1.5)
