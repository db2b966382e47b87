import pytest
import torch
from torch import nn

from mlcomp.layerwise import reestimate_batchnorm


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(3, 2, 1))


def test_statistics_are_the_mean_of_the_batches():
    model = net()
    x = torch.randn(30, 1, 6, 6) + 2
    result = reestimate_batchnorm(model, x.split(10))
    outputs = [model[0](part).detach().movedim(1, 0).flatten(1) for part in x.split(10)]
    torch.testing.assert_close(result[1].running_mean, torch.stack([o.mean(1) for o in outputs]).mean(0))
    torch.testing.assert_close(result[1].running_var, torch.stack([o.var(1) for o in outputs]).mean(0))


def test_a_shift_is_undone():
    model = net()
    x = torch.randn(64, 1, 6, 6)
    first = reestimate_batchnorm(model, [x]).eval()
    first[0].weight.data *= 3  # BatchNorm takes out any scale of the layer before it
    shifted = first(x)
    back = reestimate_batchnorm(first, [x]).eval()(x)
    wanted = reestimate_batchnorm(model, [x]).eval()(x)
    assert (shifted - wanted).abs().max() > 0.1
    torch.testing.assert_close(back, wanted, rtol=1e-3, atol=1e-3)  # eps = 1e-5 in the variance is not scaled


def test_the_model_modes_and_momentum_stay():
    model = net().train()
    model[3].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = reestimate_batchnorm(model, [torch.randn(8, 1, 6, 6)])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert result.training and result[1].training and not result[3].training and result[1].momentum == 0.1
    assert torch.equal(result[0].weight, model[0].weight)


def test_bad_input():
    with pytest.raises(ValueError, match="no BatchNorm"):
        reestimate_batchnorm(nn.Linear(2, 2), [torch.ones(1, 2)])
    with pytest.raises(ValueError, match="batches is empty"):
        reestimate_batchnorm(net(), [])
    with pytest.raises(TypeError, match="got one Tensor"):
        reestimate_batchnorm(net(), torch.ones(2, 1, 6, 6))
    with pytest.raises(ValueError, match="'1': its statistics"):
        reestimate_batchnorm(net(), [torch.full((2, 1, 6, 6), float("nan"))])
    model = net()
    model.add_module("last", nn.Identity())
    model.last.bn = nn.BatchNorm2d(3)
    with pytest.raises(ValueError, match=r"'last\.bn' was never called"):
        reestimate_batchnorm(model, [torch.randn(4, 1, 6, 6)])
