import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mlcomp.data import make_layer
from mlcomp.layerwise import analytic_correction, bias_correction, correct_biases, output_means, relu_mean
from mlcomp.models import convnet
from mlcomp.prune import magnitude
from mlcomp.quant import fold_batchnorm, rtn


def net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(2, 6, 3, bias=False),
            nn.ReLU(),
            nn.Conv2d(6, 4, 3, groups=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16, 3),
        ).double()


def rounded(model: nn.Module, bits: int = 2) -> nn.Module:
    result = copy.deepcopy(model)
    for layer in result.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            q = rtn(layer.weight.detach().flatten(1), bits=bits)
            layer.weight.data = q.dequantize().reshape(layer.weight.shape)
    return result


def batches(seed: int = 1) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.rand(n, 2, 6, 6, generator=g, dtype=torch.float64) for n in (7, 5)]


def test_means_against_all_outputs_at_once():
    model, data = net(), batches()
    means = output_means(model, data)
    assert list(means) == ["0", "2", "5"]
    x = torch.cat(data)
    torch.testing.assert_close(means["0"], model[0](x).mean((0, 2, 3)).detach())
    torch.testing.assert_close(means["5"], model(x).mean(0).detach())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_layer_gets_the_reference_means(seed):
    model, data = net(seed), batches(seed)
    damaged = rounded(model)
    before = copy.deepcopy(damaged.state_dict())
    fixed = correct_biases(damaged, model, data)
    wanted, got, worse = (output_means(m, data) for m in (model, fixed, damaged))
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-12, atol=1e-12)
        assert (worse[name] - wanted[name]).abs().max() > 1e-3
    assert all(torch.equal(t, before[k]) for k, t in damaged.state_dict().items())
    assert fixed[0].bias is not None and damaged[0].bias is None
    assert all(torch.equal(fixed[i].weight, damaged[i].weight) for i in (0, 2, 5))
    held_out = torch.cat(batches(seed + 10))
    with torch.no_grad():
        error = [(m(held_out) - model(held_out)).square().sum() for m in (fixed, damaged)]
    assert error[0] < error[1]


def test_channels_of_a_convolution_without_a_batch_dimension():
    conv, x = nn.Conv2d(2, 3, 2), torch.randn(2, 4, 5)
    with torch.no_grad():
        wanted = conv(x).double().mean((1, 2))
    torch.testing.assert_close(output_means(conv, [x])[""], wanted)


def test_a_chosen_layer_only():
    model, data = net(), batches()
    fixed = correct_biases(rounded(model), model, data, ["2"])
    assert fixed[0].bias is None
    torch.testing.assert_close(output_means(fixed, data)["2"], output_means(model, data)["2"])


def test_mean_of_a_rectified_gaussian_against_samples():
    mean, std = torch.tensor([-2.0, -0.5, 0.0, 0.5, 3.0]), torch.tensor([1.0, 0.3, 2.0, 0.0, 1.0])
    g = torch.Generator().manual_seed(0)
    samples = (mean + std * torch.randn(400_000, 5, generator=g)).relu()
    # Standard errors are at most 2/√400000 = 0.003.
    torch.testing.assert_close(relu_mean(mean, std), samples.mean(0), rtol=0, atol=0.012)
    assert relu_mean(mean, std)[3] == 0.5 and relu_mean(-mean, torch.zeros(5))[0] == 2


def test_analytic_equals_empirical_where_its_assumptions_hold():
    g = torch.Generator().manual_seed(0)
    mean, std = torch.randn(8, generator=g), torch.rand(8, generator=g) + 0.2
    x = (mean + std * torch.randn(200_000, 8, generator=g)).relu()
    weight = torch.randn(4, 8, generator=g)
    q = rtn(weight, bits=2).dequantize()
    shift = (x @ weight.T - x @ q.T).mean(0)
    assert shift.abs().max() > 0.1
    torch.testing.assert_close(analytic_correction(weight, q, relu_mean(mean, std)), shift, rtol=0, atol=0.01)
    kernel = analytic_correction(weight.reshape(4, 4, 2, 1), q.reshape(4, 4, 2, 1), torch.ones(4))
    torch.testing.assert_close(kernel, (weight - q).sum(1))


@pytest.mark.slow
def test_analytic_points_the_right_way_in_the_real_network(as_user):
    """Without data, from BatchNorm's β and γ: most of the shift of a convolution behind BatchNorm and relu."""
    from mlcomp.data import mnist_calibration

    model = convnet()
    data = mnist_calibration(128)
    block = model.block1
    weight = block.conv2.conv.weight.detach()
    q = rtn(weight.flatten(1), bits=3, symmetric=True, clip="mse").dequantize().reshape(weight.shape)
    damaged = copy.deepcopy(model)
    damaged.block1.conv2.conv.weight.data = q
    name = "block1.conv2.conv"
    shift = output_means(model, data, [name])[name] - output_means(damaged, data, [name])[name]
    mean = relu_mean(block.conv1.bn.bias.detach(), block.conv1.bn.weight.detach().abs())
    guess = analytic_correction(weight, q, mean).double()
    assert (shift - guess).norm() < 0.6 * shift.norm()
    assert fold_batchnorm(model).block1.conv1.conv.bias is not None


def test_bad_input(as_user):
    model, data = net(), batches()
    with pytest.raises(TypeError, match="got one Tensor"):
        correct_biases(model, model, data[0])
    with pytest.raises(ValueError, match="one-shot"):
        correct_biases(model, model, iter(data))
    with pytest.raises(ValueError, match="no layer was called"):
        correct_biases(model, model, [])
    with pytest.raises(ValueError, match="no layer '9'"):
        output_means(model, data, ["9"])
    with pytest.raises(ValueError, match="the output of layer '0' holds"):
        output_means(model, [data[0] / 0])
    other = copy.deepcopy(model)
    other[5] = nn.Linear(16, 4).double()
    with pytest.raises(ValueError, match="has 4 outputs, and 3"):
        correct_biases(other, model, data)
    with pytest.raises(ValueError, match="must not be negative"):
        relu_mean(torch.zeros(2), torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match="std holds"):
        relu_mean(torch.zeros(1), torch.tensor([torch.inf]))
    with pytest.raises(ValueError, match="alike and input_mean"):
        analytic_correction(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2))


@given(st.integers(1, 5), st.integers(1, 8), st.integers(1, 20), st.booleans(), st.integers(0, 2**31))
def test_mean_output_is_the_dense_one(out, inp, samples, drifted, seed):
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, inp, generator=g, dtype=torch.float64)
    x = torch.randn(inp, samples, generator=g, dtype=torch.float64) + 1
    x_hat = x + 0.3 * torch.randn(inp, samples, generator=g, dtype=torch.float64) if drifted else x
    pruned = magnitude(weight, sparsity=0.5)
    shift = bias_correction(weight, pruned, x.mean(1), corrected_input_mean=x_hat.mean(1) if drifted else None)
    outputs = pruned @ x_hat + shift[:, None]
    torch.testing.assert_close(outputs.mean(1), (weight @ x).mean(1), atol=1e-12, rtol=1e-12)


def test_is_the_best_bias():
    """The least-squares bias, found by solving for it on a column of ones."""
    weight, x, _ = make_layer(6, 16, 200)
    weight, x = weight.double(), x.double().abs()
    pruned = magnitude(weight, sparsity=0.7)
    ones = torch.ones(200, 1, dtype=torch.float64)
    best = torch.linalg.lstsq(ones, ((weight - pruned) @ x).T).solution[0]
    torch.testing.assert_close(bias_correction(weight, pruned, x.mean(1)), best)


def test_by_hand_and_dtype():
    weight, pruned = torch.tensor([[1.0, 2.0]]).bfloat16(), torch.tensor([[0.0, 2.0]]).bfloat16()
    shift = bias_correction(weight, pruned, torch.tensor([10.0, 1.0]))
    assert shift.tolist() == [10] and shift.dtype == torch.float64
    shift = bias_correction(weight, pruned, torch.tensor([10.0, 1.0]), corrected_input_mean=torch.tensor([8.0, 3.0]))
    assert shift.tolist() == [12 - 6]


def test_bad_input_of_one_layer(as_user):
    weight = torch.ones(2, 3)
    with pytest.raises(ValueError, match="corrected must be"):
        bias_correction(weight, torch.ones(3, 2), torch.ones(3))
    with pytest.raises(ValueError, match=r"input_mean must be \(3,\)"):
        bias_correction(weight, weight, torch.ones(2))
    with pytest.raises(ValueError, match=r"corrected_input_mean must be \(3,\)"):
        bias_correction(weight, weight, torch.ones(3), corrected_input_mean=torch.ones(3, 1))
    with pytest.raises(ValueError, match="input_mean holds"):
        bias_correction(weight, weight, torch.ones(3) / 0)
    with pytest.raises(ValueError, match="corrected holds"):
        bias_correction(weight, weight / 0, torch.ones(3))
