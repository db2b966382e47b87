import pytest
import torch
from torch import nn

from mlcomp.layerwise import layer_hessian
from mlcomp.obs.network_hessian import (
    flatten_network,
    gauss_newton,
    gauss_newton_diagonal,
    hessian_diagonal,
    network_hessian,
    network_with,
)

CROSS_ENTROPY = nn.functional.cross_entropy


def sum_of_squares(outputs, targets):
    return (outputs - targets).square().sum()


@pytest.fixture(scope="module")
def flat():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    return flatten_network(model, torch.randn(20, 5), torch.randint(3, (20,)), CROSS_ENTROPY)


def test_hessian_is_that_of_finite_differences_of_the_loss(flat):
    h = network_hessian(flat)
    n, step = len(flat.theta), 1e-4
    units = step * torch.eye(n, dtype=torch.float64)

    def loss(theta):
        with torch.no_grad():
            return float(flat.loss(theta))

    for i in (0, 7, 21, 30, n - 1):
        for j in (3, 21, n - 2):
            corners = [loss(flat.theta + a * units[i] + b * units[j]) * a * b for a in (1, -1) for b in (1, -1)]
            # Central differences: truncation of order step², rounding of order 1e-16/step².
            assert sum(corners) / (4 * step**2) == pytest.approx(float(h[i, j]), abs=2e-7)


def test_diagonals_are_those_of_the_full_matrices_for_any_chunk(flat):
    h, g = network_hessian(flat, chunk=5), gauss_newton(flat)
    for chunk in (1, 7, 64):
        torch.testing.assert_close(hessian_diagonal(flat, chunk=chunk), h.diagonal())
    torch.testing.assert_close(gauss_newton_diagonal(flat), g.diagonal())
    assert torch.linalg.eigvalsh(g)[0] > -1e-12 * g.abs().max()


def test_linear_layer_with_squared_loss_has_the_layer_hessian_in_every_row():
    torch.manual_seed(1)
    x = torch.randn(30, 6, dtype=torch.float64)
    flat = flatten_network(nn.Linear(6, 2, bias=False), x, torch.randn(30, 2), sum_of_squares)
    expected = torch.block_diag(*[layer_hessian(x.T)] * 2)  # 2·X·Xᵀ, rows of W independent
    torch.testing.assert_close(network_hessian(flat), expected)
    torch.testing.assert_close(gauss_newton(flat), expected)  # the outputs are linear in θ


def test_gauss_newton_is_the_hessian_without_the_curvature_of_the_outputs(flat):
    # With targets equal to the outputs the gradient of a squared loss is zero, and so is what Gauss–Newton drops.
    outputs = flat.outputs(flat.theta, flat.inputs).detach()
    exact = flatten_network(flat.model, flat.inputs, outputs, sum_of_squares)
    torch.testing.assert_close(gauss_newton(exact), network_hessian(exact))
    assert (gauss_newton(flat) - network_hessian(flat)).norm() > 0.05 * network_hessian(flat).norm()


def test_cross_entropy_gauss_newton_is_jacobian_times_softmax_covariance(flat):
    expected = torch.zeros_like(network_hessian(flat))
    for x in flat.inputs:
        z = flat.outputs(flat.theta, x[None])[0].detach()
        p = z.softmax(0)
        j = torch.autograd.functional.jacobian(lambda t, x=x: flat.outputs(t, x[None])[0], flat.theta)
        expected += j.T @ (torch.diag(p) - torch.outer(p, p)) @ j / len(flat.inputs)
    torch.testing.assert_close(gauss_newton(flat), expected)


def test_model_is_copied_and_prunable_marks_matrices_only():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2)).train()
    model[0].bias.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    flat = flatten_network(model, torch.randn(6, 1, 4, 4), torch.randint(2, (6,)), CROSS_ENTROPY)
    network_hessian(flat)
    changed = network_with(model, flat.theta + 1)
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert len(flat.theta) == 18 + 4 + 16 + 2 and int(flat.prunable.sum()) == 18 + 16
    torch.testing.assert_close(changed[3].weight, model[3].weight + 1)
    assert torch.equal(changed[0].bias, model[0].bias)


def test_bad_input_is_a_clear_error(as_user):
    model, x, y = nn.Linear(3, 2), torch.randn(4, 3), torch.randint(2, (4,))
    with pytest.raises(ValueError, match="samples"):
        flatten_network(model, x[:0], y[:0], CROSS_ENTROPY)
    with pytest.raises(ValueError, match="trainable"):
        flatten_network(nn.ReLU(), x, y, CROSS_ENTROPY)
    with pytest.raises(ValueError, match="inputs holds"):
        flatten_network(model, x * torch.nan, y, CROSS_ENTROPY)
    with pytest.raises(ValueError, match="scalar"):
        flatten_network(model, x, y, lambda z, t: CROSS_ENTROPY(z, t, reduction="none"))
