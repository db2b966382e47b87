import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mlcomp.formats import AbsmaxInt8, int8_matmul
from mlcomp.quant import FakeQuantized, activation_grid, integer_linear, rtn


def made(bits_w=8, bits_x=8, symmetric=True, seed=0, out=5, inp=12, low=-0.7, high=2.0, bias=True):
    g = torch.Generator().manual_seed(seed)
    layer = nn.Linear(inp, out, bias=bias)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(out, inp, generator=g))
    q = rtn(layer.weight.detach(), bits=bits_w, symmetric=symmetric)
    x = torch.randn(7, inp, generator=g)
    return FakeQuantized(layer, q, activation_grid(low, high, bits=bits_x)), x


@given(st.integers(2, 8), st.integers(1, 8), st.booleans(), st.integers(0, 2**31), st.floats(-3.0, 0.0))
def test_whole_numbers_give_the_same_output(bits_w, bits_x, symmetric, seed, low):
    module, x = made(bits_w, bits_x, symmetric, seed, low=low)
    x = torch.cat([x, torch.full((1, 12), 100.0), torch.full((1, 12), -100.0)])  # beyond either end of the grid
    exact = module.round_input(x).double() @ module.layer.weight.double().T + module.layer.bias.double()
    size = module.round_input(x).abs().double() @ module.layer.weight.abs().double().T
    # Ours rounds the final product and sum (and the weights of ``module.layer`` are rounded products s·q): a few ulp
    # of the sum of magnitudes.
    assert ((integer_linear(module, x).double() - exact).abs() <= 2e-6 * (size + 1)).all()
    torch.testing.assert_close(integer_linear(module, x), module(x), rtol=1e-5, atol=1e-5)


def test_the_accumulator_is_that_of_int8_matmul():
    module, x = made(inp=64, out=16)
    codes = (module.input_codes(x) - 128).to(torch.int8)
    weight = (module.codes.int() - 128).to(torch.int8)
    product = int8_matmul(AbsmaxInt8(codes, module.input_step.expand(len(x), 1)), AbsmaxInt8(weight, module.step))
    z = float(module.input_zero) - 128
    correction = z * module.input_step * module.step.T * weight.float().sum(1)
    torch.testing.assert_close(
        product - correction + module.layer.bias, integer_linear(module, x), rtol=1e-5, atol=1e-5
    )


def test_leading_dimensions_and_no_bias():
    module, x = made(bias=False)
    y = integer_linear(module, x.reshape(7, 1, 12).expand(7, 3, 12))
    assert y.shape == (7, 3, 5) and torch.equal(y[:, 1], integer_linear(module, x))


def test_input_rounding_and_sizes():
    module, x = made(4, 3)
    rounded = module.round_input(x)
    step = float(module.input_step)
    inside = (x >= -0.7) & (x <= 2.0)
    # The zero code is whole, so the ends may lie up to half a step off.
    assert ((rounded - x).abs()[inside] <= step * 1.001).all() and rounded.unique().numel() <= 8
    assert module.nbytes == (5 * 12 * 4 // 8 + 5 * 4) + 5 * 4 + (4 + 1)
    assert torch.equal(module.quantized.dequantize(), module.weight)
    only_weights = FakeQuantized(nn.Linear(12, 5), module.quantized, None)
    assert torch.equal(only_weights.round_input(x), x) and only_weights.nbytes == module.nbytes - 5
    assert "weight_bits=4, input_bits=3" in repr(module)
    assert set(module.state_dict()) >= {"codes", "step", "zero", "input_step", "input_zero", "layer.weight"}


def test_the_layer_given_stays_and_convolutions_work():
    layer = nn.Conv2d(4, 6, 3, groups=2, padding=1)
    before = layer.weight.clone()
    q = rtn(layer.weight.detach().flatten(1), bits=4)
    module = FakeQuantized(layer, q, activation_grid(0.0, 1.0, bits=8))
    assert torch.equal(layer.weight, before) and layer.weight.requires_grad
    x = torch.rand(2, 4, 5, 5)
    wanted = nn.functional.conv2d(
        module.round_input(x), q.dequantize().reshape(layer.weight.shape), layer.bias, padding=1, groups=2
    )
    torch.testing.assert_close(module(x), wanted)


def test_bad_input():
    q = rtn(torch.randn(3, 4), bits=4)
    grid = activation_grid(0.0, 1.0, bits=8)
    with pytest.raises(ValueError, match="got ReLU"):
        FakeQuantized(nn.ReLU(), q, grid)
    with pytest.raises(ValueError, match=r"codes must be \(5, 4\) like the layer's weight"):
        FakeQuantized(nn.Linear(4, 5), q, grid)
    with pytest.raises(ValueError, match="no codes"):
        FakeQuantized(nn.Linear(4, 3), q, None).input_codes(torch.ones(1, 4))
    for module in (
        FakeQuantized(nn.Linear(4, 3), q, None),
        FakeQuantized(nn.Conv2d(4, 3, 1), q, grid),
        FakeQuantized(nn.Linear(4, 3), rtn(torch.randn(3, 4), bits=4, group_size=2), grid),
    ):
        with pytest.raises(ValueError, match="integer_linear needs"):
            integer_linear(module, torch.ones(1, 4))
    wide = FakeQuantized(nn.Linear(33026, 1), rtn(torch.ones(1, 33026), bits=8), grid)
    with pytest.raises(ValueError, match="exceed 32 bits; at most 33025"):
        integer_linear(wide, torch.ones(1, 33026))
    with pytest.raises(ValueError, match="x holds"):
        integer_linear(FakeQuantized(nn.Linear(4, 3), q, grid), torch.full((1, 4), torch.nan))
