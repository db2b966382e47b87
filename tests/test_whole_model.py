"""The whole-model experiment: every method of its table runs on a layer and keeps to its bits."""

import pytest
import torch

from experiments.whole_model import methods
from mlcomp.data import make_layer
from mlcomp.metrics import hessian_error
from mlcomp.obs import layer_hessian


@pytest.mark.parametrize("bits", [2, *(pytest.param(bits, marks=pytest.mark.slow) for bits in (3, 4))])
def test_methods_keep_to_their_bits(bits):
    weight, x, _ = make_layer(192, 192, 800, seed=0)
    hessian = layer_hessian(x)
    errors = {}
    for name, method in methods(bits).items():
        result = method(weight, hessian)
        # A row of 192 pays 32 bits for its step; SpQR's statistics and outliers come to a bit and a half at most, and
        # AQLM's codebooks, 16 bits for each of up to 2·256·4 numbers, to 0.9 bits for so few weights.
        assert bits <= result.bits_per_weight < bits + {"spqr": 1.5, "aqlm": 1.0}.get(name, 0.6)
        assert torch.isfinite(result.dequantize()).all()
        errors[name] = hessian_error(weight, result.dequantize(), hessian)
    assert errors["quip_sharp"] < errors["quip"] and errors["aqlm"] < errors["gptq"] < errors["rtn"]
