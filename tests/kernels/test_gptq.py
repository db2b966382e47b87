import pytest
import torch

from mlcomp.kernels.gptq import gptq
from mlcomp.quant import gptq as reference
from mlcomp.quant import rtn
from tests.kernels.test_exact_obs import layer, loss


def same(got, want):
    """Raise unless codes, zero codes and groups are equal, and steps up to rounding."""
    assert torch.equal(got.codes, want.codes) and got.codes.is_contiguous()
    assert torch.equal(got.zero, want.zero) and (got.bits, got.symmetric) == (want.bits, want.symmetric)
    # Grids that follow updated weights: what float64 rounds otherwise may be the last bit of a float32.
    torch.testing.assert_close(got.step, want.step, rtol=1e-6, atol=0)
    assert (got.group is None) == (want.group is None)
    assert want.group is None or torch.equal(got.group, want.group)


@pytest.mark.parametrize(("out", "inp", "options"), [
    (5, 7, {"bits": 3}), (1, 1, {"bits": 8}), (3, 24, {"bits": 4, "symmetric": True, "order": "activation"}),
    (3, 20, {"bits": 1, "clip": "mse", "order": "ascending"}), (70, 12, {"bits": 4, "block_size": 5}),
    (2, 24, {"bits": 2, "group_size": 8, "scale_dtype": torch.float16}),
    (4, 40, {"bits": 3, "group_size": 8, "order": "activation", "block_size": 16}),
    (4, 40, {"bits": 3, "group_size": 20, "clip": "mse", "block_size": 7}),
    (4, 40, {"bits": 3, "group_size": 8, "order": "activation", "static_groups": True, "block_size": 16}),
    pytest.param(2, 150, {"bits": 4, "group_size": 50}, marks=pytest.mark.slow),
    pytest.param(2, 140, {"bits": 4}, marks=pytest.mark.slow),
])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_reference(random, out, inp, options, dtype):
    weight, hessian = layer(random, out, inp)
    before = weight.to(dtype)
    same(gptq(before, hessian, **options), reference(weight.to(dtype), hessian, **options))
    assert torch.equal(before, weight.to(dtype))


def test_float32_costs_little(random):
    weight, hessian = layer(random, 16, 40)
    got, want = (loss(weight, f.dequantize(), hessian).sum() for f in (
        gptq(weight, hessian, bits=4, group_size=8, dtype=torch.float32),
        reference(weight, hessian, bits=4, group_size=8),
    ))  # fmt: skip
    # A weight near the middle between two codes may fall the other way, for better or worse.
    assert got <= 1.05 * want
    assert got < loss(weight, rtn(weight, bits=4, group_size=8).dequantize(), hessian).sum()


def test_identity_hessian_is_rounding_to_nearest(random):
    weight = random(3, 19)
    hessian = 2 * torch.eye(19, device=weight.device)
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(gptq(weight, hessian, bits=3, dtype=dtype).codes, rtn(weight, bits=3).codes)


def test_dead_inputs_and_non_contiguous(random):
    weight, hessian = layer(random, 12, 20, samples=40)
    hessian[3], hessian[:, 3] = 0, 0
    for options in ({}, {"group_size": 5, "order": "activation"}):
        got = gptq(weight[::3], hessian.T, bits=3, **options)
        same(got, reference(weight[::3], hessian, bits=3, **options))
        assert (got.dequantize()[:, 3] == 0).all()


def test_bad_input(random, as_user):
    weight, hessian = layer(random, 2, 8)
    for wrong, told in (
        ({"bits": 9}, "bits must be"), ({"group_size": 3}, "divide the 8 inputs"), ({"clip": "best"}, "minmax"),
        ({"order": "random"}, "activation"), ({"block_size": 0}, "block_size"), ({"damp": -1.0}, "damp"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            gptq(weight, hessian, **({"bits": 3} | wrong))
    with pytest.raises(TypeError, match=r"float32, torch\.float64"):
        gptq(weight, hessian, bits=3, dtype=torch.float16)
    with pytest.raises(ValueError, match="NaN"):
        gptq(weight / 0, hessian, bits=3)
    with pytest.raises(ValueError, match="one device"):
        gptq(weight, hessian.to("meta"), bits=3)
