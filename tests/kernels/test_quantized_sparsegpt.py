import pytest
import torch

from mlcomp.kernels.quantized_sparsegpt import quantized_sparsegpt
from mlcomp.obs import quantized_sparsegpt as reference
from tests.kernels.test_exact_obs import layer, loss
from tests.kernels.test_gptq import same


@pytest.mark.parametrize(("out", "inp", "options"), [
    (5, 7, {"bits": 3, "sparsity": 0.5}), (70, 12, {"bits": 4, "pattern": (2, 4), "symmetric": True}),
    (4, 40, {"bits": 4, "sparsity": 0.6, "mask_block": 6, "block_size": 16, "order": "activation", "group_size": 10}),
    (3, 24, {"bits": 2, "pattern": (1, 4), "group_size": 8, "clip": "mse", "scale_dtype": torch.float16}),
    (2, 23, {"bits": 8, "pattern": (3, 7), "block_size": 5}),
])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_reference(random, out, inp, options, dtype):
    weight, hessian = layer(random, out, inp)
    same(*(f(weight.to(dtype), hessian, **options) for f in (quantized_sparsegpt, reference)))


def test_a_given_mask_and_dead_inputs(random):
    weight, hessian = layer(random, 4, 20)
    hessian[3], hessian[:, 3] = 0, 0
    for target in ({"mask": random(4, 20, seed=5) > 0}, {"pattern": (2, 4)}, {"sparsity": 0.5}):
        same(*(f(weight, hessian, bits=4, **target) for f in (quantized_sparsegpt, reference)))


def test_float32_costs_little(random):
    weight, hessian = layer(random, 16, 40)
    got, want = (loss(weight, f.dequantize(), hessian).sum() for f in (
        quantized_sparsegpt(weight, hessian, bits=4, pattern=(2, 4), dtype=torch.float32),
        reference(weight, hessian, bits=4, pattern=(2, 4)),
    ))  # fmt: skip
    assert got <= 1.05 * want  # a choice near a tie may fall the other way


def test_bad_input(random, as_user):
    weight, hessian = layer(random, 2, 8)
    for wrong, told in (
        ({"bits": 0}, "bits must be"), ({"group_size": 3}, "divide"), ({"pattern": (2, 4)}, "exactly one"),
        ({"order": "best"}, "order"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            quantized_sparsegpt(weight, hessian, **({"bits": 3, "sparsity": 0.5} | wrong))
    with pytest.raises(TypeError, match=r"float32, torch\.float64"):
        quantized_sparsegpt(weight, hessian, bits=3, sparsity=0.5, dtype=torch.float16)
