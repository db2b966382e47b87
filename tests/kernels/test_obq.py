import pytest
import torch

from mlcomp.kernels.obq import obq
from mlcomp.obs import obq as reference
from mlcomp.quant import rtn
from tests.kernels.test_exact_obs import layer, loss


@pytest.mark.parametrize(("out", "inp", "options"), [
    (5, 7, {"bits": 3}), (3, 37, {"bits": 4, "symmetric": True}), (3, 20, {"bits": 1, "clip": "mse"}),
    (2, 24, {"bits": 2, "group_size": 8, "scale_dtype": torch.float16}),
    (3, 20, {"bits": 3, "outliers": False}), (2, 9, {"bits": 8}),
])  # fmt: skip
def test_equals_the_reference(random, out, inp, options):
    weight, hessian = layer(random, out, inp)
    got, want = (f(weight.double(), hessian, **options) for f in (obq, reference))
    assert torch.equal(got.codes, want.codes)
    assert torch.equal(got.step, want.step) and got.step.dtype == want.step.dtype and torch.equal(got.zero, want.zero)


@pytest.mark.slow
def test_float32_costs_little(random):
    weight, hessian = layer(random, 4, 40)
    got = obq(weight, hessian, bits=4, damp=0.01, dtype=torch.float32).dequantize()
    want = reference(weight, hessian, bits=4, damp=0.01).dequantize()
    # Greedy choices near a tie may differ; the loss as a whole must not.
    assert loss(weight, got, hessian).sum() <= 1.05 * loss(weight, want, hessian).sum()
    assert loss(weight, got, hessian).sum() < loss(weight, rtn(weight, bits=4).dequantize(), hessian).sum()


def test_identity_hessian_is_rounding_to_nearest(random):
    weight = random(3, 19)
    hessian = 2 * torch.eye(19, device=weight.device)
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(obq(weight, hessian, bits=3, dtype=dtype).codes, rtn(weight, bits=3).codes)


def test_dead_inputs_and_non_contiguous(random):
    weight, hessian = layer(random, 12, 20, samples=40)
    hessian[3], hessian[:, 3] = 0, 0
    rows = weight.double()[::3]
    got, want = (f(rows, hessian, bits=3, damp=0.05) for f in (obq, reference))
    assert torch.equal(got.codes, want.codes) and (got.dequantize()[:, 3] == 0).all()


def test_bad_input(random, as_user):
    weight, hessian = layer(random, 2, 8)
    with pytest.raises(ValueError, match="bits must be"):
        obq(weight, hessian, bits=9)
    with pytest.raises(ValueError, match="divide the 8 inputs"):
        obq(weight, hessian, bits=3, group_size=3)
    with pytest.raises(ValueError, match="minmax"):
        obq(weight, hessian, bits=3, clip="best")
    with pytest.raises(TypeError, match=r"float32, torch\.float64"):
        obq(weight, hessian, bits=3, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="one row of 8 inputs"):
        obq(weight, hessian, bits=3, max_bytes=8)
