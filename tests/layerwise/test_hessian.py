import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mlcomp.data import make_layer
from mlcomp.layerwise import collect_hessians, damped_hessian, hessian, output_loss
from mlcomp.obs import inverse_hessian, layer_hessian


def inputs(inp=12, samples=40, seed=0):
    return make_layer(2, inp, samples, seed=seed)[1].double()


def test_is_the_second_derivative_of_the_output_error():
    x = inputs(6, 20)
    row = torch.randn(6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    curvature = torch.autograd.functional.hessian(lambda w: (w @ x - row @ x).square().sum(), row)
    torch.testing.assert_close(layer_hessian(x), curvature)


@given(seed=st.integers(0, 10**6), inp=st.integers(1, 12), samples=st.integers(1, 30))
def test_quadratic_form_is_twice_the_output_error(seed, inp, samples):
    x = inputs(inp, samples, seed)
    delta = torch.randn(3, inp, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    error = ((delta @ layer_hessian(x)) * delta).sum(1) / 2
    torch.testing.assert_close(error, (delta @ x).square().sum(1))


@pytest.mark.parametrize("panel", [1, 3, 7, 20])
def test_the_loss_by_panels_is_the_whole_quadratic_form(panel, monkeypatch):
    monkeypatch.setattr(hessian, "PANEL", panel)
    h = torch.stack([layer_hessian(inputs(7, 20, seed)) for seed in (0, 1)])
    delta = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64, requires_grad=True)
    loss = output_loss(delta, h)
    torch.testing.assert_close(loss, torch.einsum("goi,gij,goj->go", delta, h, delta))
    (slope,) = torch.autograd.grad(loss.sum(), delta)
    torch.testing.assert_close(slope, 2 * delta.detach() @ h)


def test_equals_what_a_layer_collects_over_batches():
    x = inputs(12, 40).float()
    model = nn.Sequential(nn.Linear(12, 3))
    collected = collect_hessians(model, list(x.T.split(7)))["0"]
    torch.testing.assert_close(collected.float(), layer_hessian(x))


@pytest.mark.parametrize(
    ("given_dtype", "dtype"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_dtypes_and_arguments_stay(given_dtype, dtype):
    x = inputs().to(given_dtype)
    before = x.clone()
    hessian = layer_hessian(x)
    assert hessian.dtype == dtype and torch.equal(x, before)
    exact = 2 * x.double() @ x.double().T
    assert (hessian.double() - exact).norm() < 1e-6 * exact.norm()


def test_inverse_is_that_of_numpy():
    x = inputs()
    hessian = layer_hessian(x)
    before = hessian.clone()
    for damp in (0.0, 0.1):
        found = inverse_hessian(hessian, damp=damp)
        h = 2 * x.numpy() @ x.numpy().T
        added = damp * np.trace(h) / 12
        np.testing.assert_allclose(
            found.inverse.numpy(), np.linalg.inv(h + added * np.eye(12)), rtol=1e-9, atol=1e-12
        )
        assert found.damping == pytest.approx(added) and not found.dead.any()
    assert torch.equal(hessian, before)


def test_damping_follows_the_units():
    hessian = layer_hessian(inputs())
    one, other = inverse_hessian(hessian, damp=0.05), inverse_hessian(hessian * 2.0**20, damp=0.05)
    torch.testing.assert_close(other.inverse * 2.0**20, one.inverse)


@pytest.mark.parametrize("damp", [0.0, 0.1])
def test_dead_inputs_do_not_matter_to_the_live_ones(damp):
    x = inputs()
    x[[2, 7]] = 0
    live = torch.tensor([i for i in range(12) if i not in (2, 7)])
    whole, part = inverse_hessian(layer_hessian(x), damp=damp), inverse_hessian(layer_hessian(x[live]), damp=damp)
    assert whole.dead.nonzero()[:, 0].tolist() == [2, 7]
    assert whole.damping == pytest.approx(part.damping)  # the mean runs over live inputs alone
    torch.testing.assert_close(whole.inverse[live][:, live], part.inverse)
    for dead in (2, 7):
        assert torch.equal(whole.inverse[dead], torch.eye(12, dtype=torch.float64)[dead])


def test_no_live_input_at_all():
    found = inverse_hessian(torch.zeros(4, 4), damp=0.1)
    assert found.dead.all() and found.damping == 0
    assert torch.equal(found.inverse, torch.eye(4, dtype=torch.float64))


def test_a_slightly_skew_matrix_is_made_symmetric():
    hessian = layer_hessian(inputs())
    hessian[0, 1] += 1e-6 * hessian[0, 1].abs()
    damped = damped_hessian(hessian)
    assert torch.equal(damped.matrix, damped.matrix.T)
    assert damped.matrix[0, 1] == (hessian[0, 1] + hessian[1, 0]) / 2


@pytest.mark.parametrize("n", [1, 64, 131])
def test_the_mean_with_the_transpose_is_exact_in_every_block(n):
    hessian = layer_hessian(inputs(n, 3 * n))
    hessian += 1e-6 * hessian.abs().max() * torch.rand(n, n, generator=torch.Generator().manual_seed(0)).tril()
    exact = (hessian.double() + hessian.double().T) / 2
    assert torch.equal(damped_hessian(hessian).matrix, exact)


@pytest.mark.parametrize("where", [(0, 1), (1, 0), (199, 0), (0, 199), (199, 198), (70, 130)])
def test_a_skew_entry_is_seen_wherever_it_is(where):
    hessian = layer_hessian(inputs(200, 600))
    hessian[where] += 1e-3 * hessian.abs().max()
    with pytest.raises(ValueError, match="symmetric"):
        damped_hessian(hessian)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rank_deficiency_is_seen_through_rounding(dtype):
    # One sample too few: the last pivot is zero but for rounding, which lets Cholesky pass half of them.
    for seed in range(12):
        hessian = layer_hessian(inputs(20, 19, seed).to(dtype))
        with pytest.raises(ValueError, match=r"20 inputs is singular \(damp=0.0\)"):
            inverse_hessian(hessian)
        damped = inverse_hessian(hessian, damp=0.01)
        exact = torch.linalg.inv(hessian.double() + damped.damping * torch.eye(20))
        assert (damped.inverse - exact).norm() < 1e-6 * exact.norm()


def test_ill_conditioned_but_regular():
    # Condition 1e10 in float64: refused would be too careful, and the inverse is right to 1e10·eps = 2e-6.
    rotation = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(0)).double())[0]
    values = torch.logspace(0, -10, 20, dtype=torch.float64)
    hessian = (rotation * values) @ rotation.T
    exact = (rotation / values) @ rotation.T
    found = inverse_hessian((hessian + hessian.T) / 2).inverse
    assert (found - exact).norm() < 1e-5 * exact.norm()


def test_bad_input(as_user):
    x = inputs()
    for bad in (x[0], x[:, :0], x[None]):
        with pytest.raises(ValueError, match=r"inputs must be \(inp, samples\)"):
            layer_hessian(bad)
    with pytest.raises(ValueError, match="inputs holds"):
        layer_hessian(x / 0)
    hessian = layer_hessian(x)
    for damp in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="damp must lie in"):
            inverse_hessian(hessian, damp=damp)
    with pytest.raises(ValueError, match="hessian must be"):
        inverse_hessian(hessian[1:])
    with pytest.raises(ValueError, match="symmetric"):
        inverse_hessian(hessian.triu())
    with pytest.raises(ValueError, match="negative diagonal"):
        inverse_hessian(-hessian)
    with pytest.raises(TypeError, match=r"hessian must be one of torch\.float32, torch\.float64"):
        inverse_hessian(hessian.half())
