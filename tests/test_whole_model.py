"""The whole-model experiment: every method of its table runs on a layer and keeps to its bits."""

import pytest
import torch

from experiments.whole_model import methods
from mlcomp.data import make_layer
from mlcomp.metrics import hessian_error
from mlcomp.obs import layer_hessian


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_methods_keep_to_their_bits(bits):
    weight, x, _ = make_layer(192, 192, 800, seed=0)
    hessian = layer_hessian(x)
    errors = {}
    for name, method in methods(bits).items():
        result = method(weight, hessian)
        # A row of 192 pays 32 bits for its step; SpQR's statistics and outliers come to a bit and a half at most.
        assert bits <= result.bits_per_weight < bits + (1.5 if name == "spqr" else 0.6)
        assert torch.isfinite(result.dequantize()).all()
        errors[name] = hessian_error(weight, result.dequantize(), hessian)
    assert errors["quip_sharp"] < errors["quip"] and errors["gptq"] < errors["rtn"]
