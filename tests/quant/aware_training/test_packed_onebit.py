"""The packed model against the trained one."""

import copy

import pytest
import torch
from torch import nn

from mlcomp.formats import onebit_matmul, restore, store
from mlcomp.quant import finish_onebit, prepare_onebit
from mlcomp.quant.aware_training import PackedOneBit

X = torch.randn(5, 13, generator=torch.Generator().manual_seed(0))


def trained(norm=True):
    torch.manual_seed(0)
    # 13 inputs: the last byte of a row is not full.
    model = prepare_onebit(nn.Sequential(nn.Linear(13, 16), nn.Tanh(), nn.Linear(16, 4, bias=False)), norm=norm)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        model[0].weight[:, 3] = 0  # counts as positive
    return model


def rounded(model, dtype):
    """The same model with vectors that the dtype holds."""
    result = copy.deepcopy(model).eval()
    for layer in (result[0], result[2]):
        for vector in (layer.rows, layer.columns):
            vector.data = vector.data.to(dtype).float()
    return result


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_it_is_the_trained_model_with_rounded_vectors(dtype, norm):
    model = trained(norm)
    before = copy.deepcopy(model.state_dict())
    made = finish_onebit(model, dtype=dtype)
    assert [type(m) for m in made.model] == [PackedOneBit, nn.Tanh, PackedOneBit] and not made.model.training
    torch.testing.assert_close(made.model(X), rounded(model, dtype)(X))
    torch.testing.assert_close(made.model(X.reshape(1, 5, 13))[0], made.model(X))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_stored_form_is_that_of_the_layer():
    model = trained(norm=False)
    made = finish_onebit(model)
    result = restore(store(made.layers["0"]))
    y = X @ result.dequantize().T + model[0].bias
    torch.testing.assert_close(made.model[0](X), y)
    assert result.nbytes == 13 * 16 // 8 + 2 * (13 + 16)
    # In the model each row begins with a byte of its own.
    assert sum(b.nbytes for b in made.model[0].buffers()) == 16 * 2 + 2 * (13 + 16)


def test_a_state_dict_is_taken_up_by_a_model_of_the_same_form():
    made = finish_onebit(trained()).model
    torch.manual_seed(5)
    fresh = nn.Sequential(nn.Linear(13, 16), nn.Tanh(), nn.Linear(16, 4, bias=False))
    other = finish_onebit(prepare_onebit(fresh)).model
    other.load_state_dict(made.state_dict())
    assert torch.equal(other(X), made(X))


def test_the_product_is_the_callers():
    calls = []

    def product(x, signs, rows, columns):
        calls.append(x.shape)
        return onebit_matmul(x, signs, rows, columns)

    model = finish_onebit(trained(), product=product).model
    model(X.reshape(5, 1, 13))
    assert calls == [(5, 13), (5, 16)]


def test_gradients_reach_the_inputs():
    model = trained()
    packed, x = finish_onebit(model, dtype=torch.float32).model, X.clone().requires_grad_()
    packed(x).square().sum().backward()
    (want,) = torch.autograd.grad(model(y := X.clone().requires_grad_()).square().sum(), y)
    torch.testing.assert_close(x.grad, want)
    assert [name for name, _ in packed.named_parameters()] == ["0.bias"]


def test_bad_input(as_user):
    with pytest.raises(ValueError, match="no OneBitLinear"):
        finish_onebit(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(TypeError, match="dtype"):
        finish_onebit(trained(), dtype=torch.int8)
    model = trained()
    model[0].rows.data[0] = 1e6
    with pytest.raises(ValueError, match="float16"):
        finish_onebit(model)
