import itertools

import pytest
import torch

from mlcomp.data import make_layer
from mlcomp.metrics import hessian_error, relative_error
from mlcomp.obs import layer_hessian
from mlcomp.quant import adaquant, rtn


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", [None, 8])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.slow
def test_no_row_is_worse_than_rounding_to_nearest(bits, group_size, symmetric):
    weight, x, _ = make_layer(6, 24, 100, seed=1)
    h = layer_hessian(x.double())
    options = {"bits": bits, "group_size": group_size, "symmetric": symmetric, "clip": "mse"}
    nearest, learned = rtn(weight, **options), adaquant(weight, h, steps=60, **options)
    assert int(learned.codes.max()) < 2**bits and (learned.step > 0).all()
    assert torch.equal(learned.zero, nearest.zero) and learned.step.shape == nearest.step.shape

    def errors(q):
        delta = q.dequantize().double() - weight.double()
        return ((delta @ h) * delta).sum(1)

    # Equal rows differ by the float32 rounding of the step alone.
    assert (errors(learned) <= errors(nearest) * (1 + 1e-4) + 1e-6 * ((weight.double() @ h) * weight).sum(1)).all()


def test_one_step_is_nearest_rounding():
    weight, x, _ = make_layer(6, 24, 100, seed=1)
    learned = adaquant(weight, layer_hessian(x), bits=3, steps=1)
    nearest = rtn(weight, bits=3, clip="mse")
    assert torch.equal(learned.codes, nearest.codes) and torch.allclose(learned.step, nearest.step, rtol=1e-6)


@pytest.mark.slow
def test_close_to_the_best_of_all_codes():
    """One row of 6 inputs in 2 bits on a fixed grid: all 4^6 codes."""
    ours, best, nearest = [], [], []
    every = torch.tensor(list(itertools.product(range(4), repeat=6)), dtype=torch.float64)
    for seed in range(10):
        weight, x, _ = make_layer(1, 6, 60, seed=seed)
        weight, h = weight.double(), layer_hessian(x.double())
        q = rtn(weight, bits=2, clip="mse")
        delta = (every - q.zero) * q.step - weight
        best.append(float(((delta @ h) * delta).sum(1).min() / ((weight @ h) * weight).sum()))
        learned = adaquant(weight, h, bits=2, steps=300, step_learning_rate=0.0)
        assert torch.equal(learned.step, q.step)
        ours.append(hessian_error(weight, learned.dequantize(), h))
        nearest.append(hessian_error(weight, q.dequantize(), h))
    assert all(a >= b - 1e-12 for a, b in zip(ours, best, strict=True))
    # A heuristic that gets most of the gain that there is.
    assert sum(nearest) - sum(ours) > 0.7 * (sum(nearest) - sum(best)) > 0.05 * sum(nearest)


def test_learning_the_step_pays():
    weight, x, _ = make_layer(32, 32, 256, seed=0)
    h = layer_hessian(x)
    fixed = adaquant(weight, h, bits=2, clip="minmax", steps=200, step_learning_rate=0.0)
    free = adaquant(weight, h, bits=2, clip="minmax", steps=200, step_learning_rate=0.01)
    assert hessian_error(weight, free.dequantize(), h) < 0.9 * hessian_error(weight, fixed.dequantize(), h)


def test_units_dead_inputs_and_repeatability():
    weight, x, _ = make_layer(6, 16, 64, seed=0)
    x[3] = 0
    weight[:, 3] = 100
    h = layer_hessian(x)
    before = weight.clone(), h.clone()
    q = adaquant(weight, h, bits=3, steps=80)
    assert torch.equal(weight, before[0]) and torch.equal(h, before[1])
    assert (q.dequantize()[:, 3] == 0).all()
    for other in (adaquant(weight, h, bits=3, steps=80), adaquant(weight, h * 2.0**-20, bits=3, steps=80)):
        assert torch.equal(other.codes, q.codes) and torch.equal(other.step, q.step)
    assert torch.equal(adaquant(weight * 2.0**9, h, bits=3, steps=80).codes, q.codes)
    assert (adaquant(weight, h * 0, bits=3).dequantize() == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes_constant_rows_and_singular_hessian(dtype):
    weight, x, _ = make_layer(5, 12, 4, seed=0)
    weight[1], weight[2] = 0, 0.25
    q = adaquant(weight.to(dtype), layer_hessian(x), bits=4, steps=50)
    assert torch.isfinite(q.dequantize()).all() and (q.dequantize()[1] == 0).all()
    assert q.step.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_far_better_than_rounding_to_nearest(bits):
    weight, x, held_out = make_layer(64, 64, 512, seed=0)
    learned = adaquant(weight, layer_hessian(x), bits=bits).dequantize()
    nearest = rtn(weight, bits=bits, clip="mse").dequantize()
    assert relative_error(weight, learned, x) < 0.7 * relative_error(weight, nearest, x)
    assert relative_error(weight, learned, held_out) < 0.8 * relative_error(weight, nearest, held_out)


def test_bad_input(as_user):
    weight, h = torch.ones(2, 4), torch.eye(4)
    with pytest.raises(ValueError, match="bits must be"):
        adaquant(weight, h, bits=9)
    with pytest.raises(ValueError, match="group_size"):
        adaquant(weight, h, bits=4, group_size=3)
    with pytest.raises(ValueError, match="steps"):
        adaquant(weight, h, bits=4, steps=0)
    with pytest.raises(ValueError, match="hessian must be"):
        adaquant(weight, torch.eye(5), bits=4)
    with pytest.raises(ValueError, match="weight holds"):
        adaquant(weight / 0, h, bits=4)
