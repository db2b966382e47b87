import itertools

import pytest
import torch

from mlcomp.data import make_layer
from mlcomp.metrics import hessian_error, relative_error
from mlcomp.obs import layer_hessian
from mlcomp.quant import adaround, rtn
from mlcomp.quant.post_training.adaround import (
    annealed_beta,
    inverse_rectified_sigmoid,
    objective_gradient,
    rectified_sigmoid,
    round_for_output,
    rounding_penalty,
)


def best_rounding(weight: torch.Tensor, h: torch.Tensor, **options) -> float:
    """The least error over all 2^n floors and ceilings of one row on the grid of rtn."""
    q = rtn(weight, **options)
    step, zero = float(q.step), float(q.zero)
    low = torch.floor(weight / step) + zero
    choices = torch.tensor(list(itertools.product((0, 1), repeat=weight.shape[1])), dtype=torch.float64)
    candidates = ((low + choices).clamp(0, 2**q.bits - 1) - zero) * step
    delta = candidates - weight
    return float(((delta @ h) * delta).sum(1).min() / ((weight @ h) * weight).sum())


@pytest.mark.slow
def test_close_to_the_best_of_all_roundings():
    learned, best, nearest = [], [], []
    for seed in range(8):
        weight, x, _ = make_layer(1, 10, 100, seed=seed, alpha=2.0)
        weight, h = weight.double(), layer_hessian(x.double())
        options = {"bits": 3, "clip": "mse"}
        learned.append(hessian_error(weight, adaround(weight, h, **options).dequantize(), h))
        best.append(best_rounding(weight, h, **options))
        nearest.append(hessian_error(weight, rtn(weight, **options).dequantize(), h))
    assert all(a >= b - 1e-12 for a, b in zip(learned, best, strict=True))
    # The continuous relaxation is a heuristic: it gets most of the gain that there is.
    assert sum(nearest) - sum(learned) > 0.85 * (sum(nearest) - sum(best)) > 0.3 * sum(nearest)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", [None, 8])
@pytest.mark.parametrize(("bits", "scale_dtype"), [(1, None), (3, torch.float16), (8, None)])
def test_codes_are_neighbours_on_the_grid_of_rtn(bits, scale_dtype, group_size, symmetric):
    weight, x, _ = make_layer(6, 24, 100, seed=1)
    options = {"bits": bits, "group_size": group_size, "symmetric": symmetric, "clip": "mse"}
    options |= {"scale_dtype": scale_dtype}
    learned = adaround(weight, layer_hessian(x), steps=60, **options)
    nearest = rtn(weight, **options)
    assert torch.equal(learned.step, nearest.step) and torch.equal(learned.zero, nearest.zero)
    width = group_size or 24
    assert learned.step.dtype == nearest.step.dtype
    step, zero = (t.float().repeat_interleave(width, 1) for t in (nearest.step, nearest.zero))
    low = torch.floor(weight / step) + zero
    allowed = torch.stack([low, low + 1]).clamp(0, 2**bits - 1)
    assert (learned.codes == allowed).any(0).all()


def test_same_codes_as_autograd_on_the_data():
    """Adam with autograd on the printed objective, through X, ends at the same codes."""
    g = torch.Generator().manual_seed(0)
    weight, step = torch.randn(3, 5, generator=g, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    x = torch.randn(5, 40, generator=g, dtype=torch.float64)
    h = layer_hessian(x)
    position = weight / step + 4
    steps, rate, penalty = 40, 0.05, 0.7
    low = torch.floor(position)
    movable = (low >= 0) & (low < 7)
    v = inverse_rectified_sigmoid(position - low).requires_grad_()
    optimizer = torch.optim.Adam([v], lr=rate)
    for i in range(steps):
        optimizer.zero_grad()
        up = rectified_sigmoid(v)
        soft = torch.where(movable, low + up, torch.round(position).clamp(0, 7))
        # Output error in squared steps; the mean of diag(H) is 2·(mean energy of an input).
        loss = ((soft - position) @ x).square().sum() / x.square().sum(1).mean()
        beta = annealed_beta(i / steps)
        if beta is not None:
            loss = loss + penalty * rounding_penalty(up[movable], beta).sum()
        loss.backward()
        optimizer.step()
    expected = torch.where(movable, low + (v > 0), torch.round(position).clamp(0, 7))
    wide = step.expand(3, 5)
    assert torch.equal(round_for_output(position, wide, h, 7, steps, rate, penalty), expected)


@pytest.mark.parametrize("beta", [None, 20.0, 7.3, 2.0])
def test_gradient_by_hand_equals_autograd(beta):
    g = torch.Generator().manual_seed(0)
    double = {"generator": g, "dtype": torch.float64}
    x = torch.randn(5, 40, **double)
    v = (3 * torch.randn(4, 5, **double)).requires_grad_()  # wide enough to saturate some
    base = torch.randn(4, 5, **double)
    reach = torch.rand(4, 5, **double) * (torch.rand(4, 5, **double) < 0.7)
    up = rectified_sigmoid(v)
    loss = ((base + reach * up) @ x).square().sum()
    if beta is not None:
        loss = loss + 0.7 * rounding_penalty(up[reach > 0], beta).sum()
    loss.backward()
    by_hand = objective_gradient(v.detach(), base, reach, x @ x.T, 0.7, beta)
    assert torch.allclose(by_hand, v.grad, rtol=1e-10, atol=1e-10)


def test_pieces_of_the_relaxation():
    h = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert torch.allclose(rectified_sigmoid(inverse_rectified_sigmoid(h)), h, atol=1e-12)
    assert rectified_sigmoid(torch.tensor([-9.0, 0, 9.0])).tolist() == [0, 0.5, 1]
    assert rounding_penalty(torch.tensor([0.0, 0.5, 1.0, 0.75]), 2.0).tolist() == [0, 1, 0, 0.75]
    assert annealed_beta(0.1) is None and annealed_beta(0.2) == 20 and annealed_beta(1.0) == 2


def test_identity_hessian_is_nearest_rounding():
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    learned = adaround(weight, torch.eye(16), bits=3, clip="minmax")
    assert torch.equal(learned.codes, rtn(weight, bits=3).codes)


def test_units_dead_inputs_and_repeatability():
    weight, x, _ = make_layer(6, 16, 64, seed=0)
    x[3] = 0
    weight[:, 3] = 100  # would ruin the grid if it were fitted
    h = layer_hessian(x)
    before = weight.clone(), h.clone()
    q = adaround(weight, h, bits=3, steps=80)
    assert torch.equal(weight, before[0]) and torch.equal(h, before[1])
    assert (q.dequantize()[:, 3] == 0).all()
    for scaled in (adaround(weight, h, bits=3, steps=80), adaround(weight, h * 2.0**-20, bits=3, steps=80)):
        assert torch.equal(scaled.codes, q.codes)
    assert torch.equal(adaround(weight * 2.0**9, h, bits=3, steps=80).codes, q.codes)
    assert (adaround(weight, h * 0, bits=3).dequantize() == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes_constant_rows_and_singular_hessian(dtype):
    weight, x, _ = make_layer(5, 12, 4, seed=0)
    weight[1], weight[2] = 0, 0.25
    q = adaround(weight.to(dtype), layer_hessian(x), bits=4, steps=50)
    assert torch.isfinite(q.dequantize()).all() and (q.dequantize()[1] == 0).all()
    assert q.step.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_far_better_than_rounding_to_nearest(bits):
    weight, x, held_out = make_layer(64, 64, 512, seed=0)
    learned = adaround(weight, layer_hessian(x), bits=bits).dequantize()
    nearest = rtn(weight, bits=bits, clip="mse").dequantize()
    assert relative_error(weight, learned, x) < 0.7 * relative_error(weight, nearest, x)
    assert relative_error(weight, learned, held_out) < 0.8 * relative_error(weight, nearest, held_out)


def test_bad_input(as_user):
    weight, h = torch.ones(2, 4), torch.eye(4)
    with pytest.raises(ValueError, match="bits must be"):
        adaround(weight, h, bits=9)
    with pytest.raises(ValueError, match="group_size"):
        adaround(weight, h, bits=4, group_size=3)
    with pytest.raises(ValueError, match="steps"):
        adaround(weight, h, bits=4, steps=0)
    with pytest.raises(ValueError, match="hessian must be"):
        adaround(weight, torch.eye(5), bits=4)
    with pytest.raises(ValueError, match="symmetric"):
        adaround(weight, torch.triu(torch.ones(4, 4)), bits=4)
    with pytest.raises(ValueError, match="weight holds"):
        adaround(weight / 0, h, bits=4)
