from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mlcomp.data import digits
from mlcomp.metrics import accuracy
from mlcomp.quant import (
    BinaryLinear,
    BinarySign,
    binarize,
    binarized_mlp,
    clip_weights,
    scaled_rates,
    squared_hinge,
)
from mlcomp.train import train


def test_signs_and_their_gradient():
    x = torch.tensor([-3.0, -1.0, -0.2, -0.0, 0.0, 0.7, 1.0, 1.5], requires_grad=True)
    y = binarize(x)
    assert y.tolist() == [-1, -1, -1, 1, 1, 1, 1, 1]
    y.backward(torch.arange(1.0, 9))
    assert x.grad.tolist() == [0, 2, 3, 4, 5, 6, 7, 0]


def test_the_gradient_is_that_of_the_hard_tanh():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weights = torch.arange(1000.0)
    (of_sign,) = torch.autograd.grad((binarize(x) * weights).sum(), x)
    (of_tanh,) = torch.autograd.grad((F.hardtanh(x) * weights).sum(), x)
    assert torch.equal(of_sign, of_tanh)


def test_stochastic_signs_have_the_probability_of_the_hard_sigmoid():
    levels = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.25, 1.0, 3.0])
    drawn = binarize(levels.expand(40_000, 7), stochastic=True, generator=torch.Generator().manual_seed(0))
    assert drawn.unique().tolist() == [-1, 1]
    mean = drawn.mean(0)
    # Five standard errors of a mean of 40 000 signs are 0.025.
    torch.testing.assert_close(mean, levels.clamp(-1, 1), atol=0.025, rtol=0)
    assert mean[[0, 1, 5, 6]].tolist() == [-1, -1, 1, 1]  # these are certain
    x = torch.full((5,), 0.5, requires_grad=True)
    binarize(x, stochastic=True).sum().backward()
    assert x.grad.tolist() == [1] * 5


def test_neurons_are_drawn_in_training_only():
    layer = BinarySign(stochastic=True)
    x = torch.zeros(500)
    assert layer(x).unique().numel() == 2
    assert torch.equal(layer.eval()(x), torch.ones(500))


def test_the_layer_computes_with_signs_and_moves_real_weights():
    layer = BinaryLinear(6, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-0.9, 0.9, 18).reshape(3, 6))
    x = torch.arange(12.0).reshape(2, 6)
    signs = torch.where(layer.weight >= 0, 1.0, -1.0)
    y = layer(x)
    assert torch.equal(y, x @ signs.T)
    y.sum().backward()
    assert torch.equal(layer.weight.grad, x.sum(0).expand(3, 6))  # ∂/∂w_b, passed on as it is
    assert layer.weight.detach().abs().max() < 1


def test_weights_stay_within_one():
    model = binarized_mlp((5, 4, 2))
    with torch.no_grad():
        for layer in (model[1], model[4]):
            layer.weight.mul_(3)
    norm = model[2].weight.detach().clone()
    clip_weights(model)(1)
    assert all(float(model[i].weight.detach().abs().max()) == 1 for i in (1, 4))
    assert torch.equal(model[2].weight, norm)


def test_rates():
    a, b, c = torch.zeros(3, 9), torch.zeros(4), torch.zeros(10, 5)
    optimizer = scaled_rates(torch.optim.SGD)([a, b, c], lr=0.1, weight_decay=0.0, momentum=0.9)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.1, 0.1 * 8**0.5, 0.1 * 10**0.5])
    assert [g["params"][0] is p for g, p in zip(optimizer.param_groups, (b, a, c), strict=True)] == [True] * 3
    assert all(g["momentum"] == 0.9 for g in optimizer.param_groups)


def test_the_loss_by_hand():
    logits = torch.tensor([[2.0, -0.5], [0.0, -3.0]])
    # Targets (+1, −1) and (−1, +1): hinges 0, 0.5 and 1, 4.
    assert float(squared_hinge(logits, torch.tensor([0, 1]))) == pytest.approx((0.25 + 1 + 16) / 4)
    assert float(squared_hinge(torch.tensor([[1.0, -1.0]]), torch.tensor([0]))) == 0


def test_the_network():
    net = binarized_mlp((6, 5, 4, 3), seed=1)
    kinds = [type(m).__name__ for m in net]
    assert kinds == ["Flatten", *["BinaryLinear", "BatchNorm1d", "BinarySign"] * 2, "BinaryLinear", "BatchNorm1d"]
    again, other = binarized_mlp((6, 5, 4, 3), seed=1), binarized_mlp((6, 5, 4, 3), seed=2)
    assert torch.equal(net[1].weight, again[1].weight) and not torch.equal(net[1].weight, other[1].weight)
    assert float(net[1].weight.abs().max()) <= 1 and float(net[1].weight.std()) > 0.4
    plain = binarized_mlp((6, 5, 3), weights="real", activation="relu")
    assert isinstance(plain[1], nn.Linear) and plain[1].bias is None and isinstance(plain[3], nn.ReLU)
    assert binarized_mlp((6, 5, 3), activation="stochastic")[3].stochastic


@pytest.mark.parametrize("activation", ["sign", pytest.param("stochastic", marks=pytest.mark.slow)])
def test_it_learns_digits(activation):
    x, y = digits("train")
    net = binarized_mlp((64, 48, 10), activation=activation)
    options = {"epochs": 3, "lr": 1e-2, "batch_size": 96, "loss": squared_hinge, "progress": False}
    train(net, 16 * x, y, optimizer=scaled_rates(torch.optim.Adam), after_step=clip_weights(net), **options)
    # A tenth would be guessing; full precision reaches 0.93 in as many epochs.
    assert accuracy(net, *[16 * digits("held_out")[0], digits("held_out")[1]]) > 0.75
    assert set(net[1](torch.eye(64)).unique().tolist()) == {-1, 1}


@pytest.mark.parametrize(
    "call",
    [
        lambda: binarize(torch.tensor([float("nan")])),
        lambda: BinaryLinear(0, 3),
        lambda: binarized_mlp((5,)),
        lambda: binarized_mlp((5, 2.5)),
        lambda: binarized_mlp((5, 2), weights="ternary"),
        lambda: binarized_mlp((5, 2), activation="tanh"),
        lambda: clip_weights(nn.Linear(3, 4)),
        lambda: squared_hinge(torch.ones(2, 3), torch.tensor([0, 3])),
        lambda: squared_hinge(torch.ones(2, 3), torch.tensor([0, -1])),
        lambda: squared_hinge(torch.ones(2, 3), torch.tensor([0])),
    ],
)
def test_bad_input(call, as_user):
    with pytest.raises(ValueError, match=r"must|NaN"):
        call()


def test_whole_numbers_are_no_activations(as_user):
    with pytest.raises(TypeError, match="must be floating point"):
        binarize(torch.tensor([1, 2]))


def test_partial_optimizers_work():
    make = scaled_rates(partial(torch.optim.Adam, betas=(0.5, 0.9)))
    (group,) = make([torch.zeros(2, 2)], lr=1e-3).param_groups
    assert group["betas"] == (0.5, 0.9)
