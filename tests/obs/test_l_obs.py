import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mlcomp.checks import removals
from mlcomp.data.synthetic import make_layer
from mlcomp.layerwise import layer_hessian
from mlcomp.metrics import relative_error
from mlcomp.obs.exact_obs import exact_obs
from mlcomp.obs.l_obs import l_obs, l_obs_error_bound
from mlcomp.obs.obd import obd
from mlcomp.obs.obs import obs_prune_step
from tests.examples import examples


def literal_l_obs(weight, hessian, sparsity, damp):
    """The published loop: one weight of the layer after the other, in order of the initial sensitivities."""
    h = hessian.double()
    b = torch.linalg.inv(h + damp * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype))
    w = weight.double().clone()
    order = (w.square() / b.diagonal()).flatten().argsort()
    gate = torch.ones_like(w)
    for index in order[: removals(sparsity, w.numel())].tolist():
        row, q = divmod(index, w.shape[1])
        w[row] -= w[row, q] / b[q, q] * b[q]
        gate[row, q] = 0
        w *= gate
    return w


@examples(25)
@given(seed=st.integers(0, 10_000), sparsity=st.floats(0, 1), damp=st.sampled_from([0.0, 0.01, 1.0]))
def test_equals_the_published_loop(seed, sparsity, damp):
    weight, x, _ = make_layer(5, 12, 40, seed=seed)
    hessian = layer_hessian(x)
    result = l_obs(weight, hessian, sparsity=sparsity, damp=damp)
    assert int((result == 0).sum()) == removals(sparsity, 60)
    torch.testing.assert_close(result.double(), literal_l_obs(weight, hessian, sparsity, damp), rtol=1e-5, atol=1e-6)


def test_lies_between_obd_and_exact_steps_and_falls_behind_as_sparsity_grows():
    weight, x, _ = make_layer(24, 32, 300, seed=0)
    hessian = layer_hessian(x)
    ratios = []
    for sparsity in (0.25, 0.5, 0.75):
        exact = exact_obs(weight, hessian, sparsity=sparsity)
        ours = relative_error(weight, l_obs(weight, hessian, sparsity=sparsity, damp=0.0), x)
        best = relative_error(weight, exact, x)
        assert best < ours < relative_error(weight, obd(weight, hessian, sparsity=sparsity), x)
        ratios.append(ours / best)
    assert max(ratios[1:]) > 1.2


def test_first_removal_of_a_row_is_the_obs_step():
    weight, x, _ = make_layer(1, 12, 40, seed=3)
    hessian = layer_hessian(x)
    step = obs_prune_step(weight[0], hessian)
    torch.testing.assert_close(l_obs(weight, hessian, sparsity=1 / 12, damp=0.0)[0], step.weight)


def test_edges():
    weight, x, _ = make_layer(4, 12, 40, seed=0)
    hessian = layer_hessian(x)
    assert torch.equal(l_obs(weight, hessian, sparsity=0.0), weight)
    assert torch.equal(l_obs(weight, hessian, sparsity=1.0), torch.zeros(4, 12))
    assert int((l_obs(torch.ones(4, 12), torch.eye(12), sparsity=0.5) == 0).sum()) == 24
    x[[2, 7]] = 0
    for sparsity in (0.0, 0.25):
        dead = l_obs(weight, layer_hessian(x), sparsity=sparsity)
        assert (dead[:, [2, 7]] == 0).all() and int((dead == 0).sum()) == max(8, removals(sparsity, 48))
    assert l_obs(weight.bfloat16(), hessian, sparsity=0.5).dtype == torch.bfloat16


def test_dead_inputs_go_before_a_live_weight_that_is_all_but_zero():
    weight, x, _ = make_layer(3, 6, 40, seed=1)
    weight = weight.double()
    weight[0, 0] = 1e-200  # its square, and so its sensitivity, is zero in float64
    x[4] = 0
    pruned = l_obs(weight, layer_hessian(x), sparsity=1 / 6)
    assert torch.equal(pruned, weight.index_fill(1, torch.tensor([4]), 0))


@examples(20)
@given(seed=st.integers(0, 10_000), sparsity=st.floats(0.1, 0.9))
def test_network_error_stays_under_the_bound(seed, sparsity):
    generator = torch.Generator().manual_seed(seed)
    layers = [torch.randn(8, 8, generator=generator) / 3 for _ in range(3)]
    x = torch.randn(8, 60, generator=generator)
    pruned, errors, original, compressed = [], [], x, x
    for k, weight in enumerate(layers):
        pruned.append(l_obs(weight, layer_hessian(original), sparsity=sparsity, damp=0.1))
        errors.append(float(((pruned[-1] - weight) @ original).norm()))
        original, compressed = weight @ original, pruned[-1] @ compressed
        if k < 2:
            original, compressed = nn.functional.relu(original), nn.functional.relu(compressed)
    bound = l_obs_error_bound(pruned, errors)
    assert float((compressed - original).norm()) <= bound * (1 + 1e-5)
    assert l_obs_error_bound(pruned[:1], errors[:1]) == pytest.approx(errors[0])


def test_bad_input_is_a_clear_error(as_user):
    weight, x, _ = make_layer(4, 12, 8, seed=0)
    hessian = layer_hessian(x)
    with pytest.raises(ValueError, match="singular"):
        l_obs(weight, hessian, sparsity=0.5, damp=0.0)
    with pytest.raises(ValueError, match="sparsity"):
        l_obs(weight, hessian, sparsity=1.01)
    with pytest.raises(ValueError, match="NaN"):
        l_obs(weight * torch.inf, hessian, sparsity=0.5)
    with pytest.raises(ValueError, match="12 inputs"):
        l_obs(weight, torch.eye(5), sparsity=0.5)
    with pytest.raises(ValueError, match="one error per layer"):
        l_obs_error_bound([weight], [])
    with pytest.raises(ValueError, match="negative"):
        l_obs_error_bound([weight], [-1.0])
