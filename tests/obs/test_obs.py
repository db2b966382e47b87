import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mlcomp.checks import removals
from mlcomp.data.synthetic import make_layer
from mlcomp.layerwise import layer_hessian
from mlcomp.obs.network_hessian import flatten_network, network_hessian
from mlcomp.obs.obd import network_obd
from mlcomp.obs.obs import obs, obs_prune_step


def row_and_hessian(inp=8, seed=0, samples=40):
    weight, x, _ = make_layer(1, inp, samples, seed=seed)
    return weight[0].double(), x.double(), layer_hessian(x.double())


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), already=st.integers(0, 4))
def test_step_is_the_best_of_all_constrained_least_squares(seed, already):
    w, x, hessian = row_and_hessian(seed=seed)
    w[:already] = 0
    best, best_row = float("inf"), None
    for q in range(already, 8):
        free = [j for j in range(already, 8) if j != q]
        fit = torch.linalg.lstsq(x[free].T, x.T @ w).solution
        row = torch.zeros_like(w)
        row[free] = fit
        error = float(((row - w) @ x).square().sum())
        if error < best:
            best, best_q, best_row = error, q, row
    step = obs_prune_step(w, hessian)
    assert step.index == best_q
    torch.testing.assert_close(step.weight, best_row, rtol=1e-7, atol=1e-9)
    assert step.loss_increase == pytest.approx(best, rel=1e-7)


def test_step_meets_the_kkt_conditions():
    w, _, hessian = row_and_hessian()
    step = obs_prune_step(w, hessian)
    delta = step.weight - w
    residual = hessian @ delta  # H·δ + λ·e_q = 0: zero everywhere but at q
    multiplier = -residual[step.index]
    residual[step.index] = 0
    assert residual.abs().max() < 1e-10 * hessian.abs().max()
    assert step.weight[step.index] == 0
    # λ = w_q/[H⁻¹]_qq
    inverse = torch.linalg.inv(hessian)
    torch.testing.assert_close(multiplier, w[step.index] / inverse[step.index, step.index])
    assert step.loss_increase == pytest.approx(float(delta @ hessian @ delta) / 2)


def test_steps_in_sequence_add_up_to_the_error_of_the_result():
    w, x, hessian = row_and_hessian(inp=10)
    row, total = w, 0.0
    for k in range(10):
        step = obs_prune_step(row, hessian)
        row, total = step.weight, total + step.loss_increase
        assert int((row == 0).sum()) == k + 1
        assert total == pytest.approx(float(((row - w) @ x).square().sum()), rel=1e-8)
    assert total == pytest.approx(float((w @ x).square().sum()), rel=1e-8)


def test_dead_inputs_go_first_for_nothing_and_ties_take_the_lowest_index():
    w, x, _ = row_and_hessian()
    x[3] = 0
    step = obs_prune_step(w, layer_hessian(x))
    expected = w.clone()
    expected[3] = 0
    assert step.index == 3 and step.loss_increase == 0 and torch.equal(step.weight, expected)
    assert obs_prune_step(torch.ones(4), torch.eye(4)).index == 0


def test_fewer_samples_than_inputs_needs_damping(as_user):
    w, _, hessian = row_and_hessian(samples=5)
    with pytest.raises(ValueError, match="singular"):
        obs_prune_step(w, hessian)
    assert obs_prune_step(w, hessian, damp=0.01).loss_increase > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_step_keeps_dtype_and_arguments(dtype):
    w, _, hessian = row_and_hessian()
    w = w.to(dtype)
    before = w.clone()
    assert obs_prune_step(w, hessian).weight.dtype == dtype
    assert torch.equal(w, before)


def sum_of_squares(outputs, targets):
    return (outputs - targets).square().sum()


@pytest.mark.parametrize("curvature", ["exact", "gauss-newton"])
def test_network_of_one_linear_layer_follows_the_row_steps(curvature):
    weight, x, _ = make_layer(1, 8, 40, seed=0)
    model = nn.Linear(8, 1, bias=False)
    model.weight.data = weight.clone()
    targets = weight.double() @ x.double()
    result = obs(model, x.T, targets.T, sum_of_squares, sparsity=0.5, curvature=curvature, damp=0.0)
    row, losses = weight[0].double(), []
    for _ in range(4):
        step = obs_prune_step(row, layer_hessian(x.double()))
        row = step.weight
        losses.append(step.loss_increase)
    torch.testing.assert_close(result.model.weight[0].double(), row, rtol=1e-5, atol=1e-6)
    assert result.loss_increases == pytest.approx(losses, rel=1e-6)
    error = float(sum_of_squares(result.model.double()(x.T.double()).detach(), targets.T))
    assert sum(result.loss_increases) == pytest.approx(error, rel=1e-4)  # float32 weights


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    x = torch.randn(60, 4, dtype=torch.float64)
    y = torch.sin(x[:, :1]) + 0.5 * x[:, 1:2] * x[:, 2:3]
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    return model, x, y


def test_first_removal_in_a_network_is_the_formula_on_the_exact_hessian(trained):
    model, x, y = trained
    flat = flatten_network(model, x, y, nn.functional.mse_loss)
    h = network_hessian(flat)
    h = h + 0.01 * h.diagonal().abs().mean() * torch.eye(len(h), dtype=h.dtype)
    inverse = torch.linalg.inv(h)
    loss = flat.theta.square() / inverse.diagonal() / 2
    q = int(loss.masked_fill(~flat.prunable, torch.inf).argmin())
    expected = flat.theta - flat.theta[q] / inverse[q, q] * inverse[:, q]
    result = obs(model, x, y, nn.functional.mse_loss, sparsity=1 / 25, curvature="exact", damp=0.01)
    assert result.order == [q] and result.loss_increases[0] == pytest.approx(float(loss[q]))
    torch.testing.assert_close(torch.cat([p.flatten() for p in result.model.parameters()]), expected)


@pytest.mark.parametrize("curvature", ["exact", "gauss-newton", "fisher"])
@pytest.mark.parametrize("recompute", [None, 1, 4])
def test_network_zeros_are_exact_and_the_callers_model_stays(trained, curvature, recompute):
    model, x, y = trained
    before = {k: v.clone() for k, v in model.state_dict().items()}
    options = {"curvature": curvature, "recompute": recompute, "damp": 1.0 if curvature == "exact" else 0.01}
    result = obs(model, x, y, nn.functional.mse_loss, sparsity=0.5, **options)
    assert len(set(result.order)) == removals(0.5, 25) == sum(int((~k).sum()) for k in result.keep.values())
    for name, p in result.model.named_parameters():
        assert torch.equal(p == 0, ~result.keep[name])
        assert not name.endswith("bias") or result.keep[name].all()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_obs_beats_obd_on_a_trained_network(trained):
    model, x, y = trained
    mse = nn.functional.mse_loss
    with torch.no_grad():
        dense = float(mse(model(x), y))
        by_diagonal = float(mse(network_obd(model, x, y, mse, sparsity=0.2).model(x), y))
        by_surgeon = float(mse(obs(model, x, y, mse, sparsity=0.2).model(x), y))
    # The excess loss: 13 times less when this was written. Not true at every sparsity: both expansions are local.
    assert 0 < by_surgeon - dense < (by_diagonal - dense) / 5


@pytest.mark.parametrize("sparsity", [0.0, 1.0])
def test_network_sparsity_zero_and_one(trained, sparsity):
    model, x, y = trained
    result = obs(model, x, y, nn.functional.mse_loss, sparsity=sparsity)
    for (name, p), old in zip(result.model.named_parameters(), model.parameters(), strict=True):
        if sparsity == 0:
            assert torch.equal(p, old)
        elif name.endswith("weight"):
            assert torch.equal(p, torch.zeros_like(p))


def test_bad_input_is_a_clear_error(as_user, trained):
    w, _, hessian = row_and_hessian()
    with pytest.raises(ValueError, match="zero already"):
        obs_prune_step(torch.zeros(8), hessian)
    with pytest.raises(ValueError, match="row"):
        obs_prune_step(w[None], hessian)
    with pytest.raises(TypeError, match="row"):
        obs_prune_step(torch.ones(8, dtype=torch.int64), hessian)
    with pytest.raises(ValueError, match="NaN"):
        obs_prune_step(w * torch.nan, hessian)
    with pytest.raises(ValueError, match="8 inputs"):
        obs_prune_step(w, hessian[:4, :4])
    model, x, y = trained
    mse = nn.functional.mse_loss
    for bad, message in (
        ({"curvature": "none"}, "curvature"),
        ({"recompute": 0}, "recompute"),
        ({"damp": -1.0}, "damp"),
        ({"curvature": "fisher", "damp": 0.0}, "fisher"),
        ({"sparsity": 1.5}, "sparsity"),
        ({"inputs": x[:4], "targets": y[:4], "damp": 0.0}, "not positive definite"),
    ):
        arguments = {"inputs": x, "targets": y, "loss_fn": mse, "sparsity": 0.5, **bad}
        with pytest.raises(ValueError, match=message):
            obs(model, **arguments)
