import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mlcomp.prune import (
    channel_importance,
    channel_loss_changes,
    connection_sensitivity,
    weight_importance,
)


class Net(nn.Module):
    """Two convolutions with BatchNorm, an in-place ReLU, a linear layer over tokens."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)
        self.next, self.last = nn.Conv2d(3, 4, 2), nn.Linear(4, 2)

    def forward(self, x):
        x = self.next(self.relu(self.bn(self.conv(x))))
        return self.last(x.flatten(2).mT).mean(1)


def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net().double()
        model.bn.load_state_dict({k: v + torch.rand(v.shape) for k, v in model.bn.state_dict().items()}, strict=False)
    return model.train()


def data(n=7):
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 1, 6, 6, generator=g, dtype=torch.float64), torch.arange(n) % 2


def loss_with(model, name, x, y, change):
    """The loss of one example when ``change`` is added to a module's output."""
    hook = model.get_submodule(name).register_forward_hook(lambda _, args, out: out + change)
    try:
        return F.cross_entropy(model.eval()(x[None]), y[None])
    finally:
        hook.remove()


def literal(name, criterion):
    """Eq. (8) in loops over examples, channels and positions; each gradient of that example's own loss."""
    model, (x, y) = copy.deepcopy(net()).eval(), data()
    scores = []
    for image, label in zip(x, y, strict=True):
        found = []
        model.get_submodule(name).register_forward_hook(lambda _, args, out, found=found: found.append(out.clone()))
        with torch.no_grad():
            model(image[None])
        change = torch.zeros_like(found[0], requires_grad=True)
        (gradient,) = torch.autograd.grad(loss_with(model, name, image, label, change), change)
        a, g = found[0][0], gradient[0]
        if name == "last":  # (tokens, channels)
            a, g = a.T, g.T
        row = []
        for channel in range(len(a)):
            terms = list(zip(a[channel].flatten().tolist(), g[channel].flatten().tolist(), strict=True))
            row.append(
                {
                    "taylor": abs(sum(u * v for u, v in terms) / len(terms)),
                    "taylor_inside": sum(abs(u * v) for u, v in terms) / len(terms),
                    "gradient": sum(abs(v) for _, v in terms) / len(terms),
                    "activation": sum(abs(u) for u, _ in terms) / len(terms),
                }[criterion]
            )
        scores.append(row)
    return torch.tensor(scores, dtype=torch.float64).mean(0)


@pytest.mark.parametrize("criterion", ["taylor", "taylor_inside", "gradient", "activation"])
def test_equation_8_in_loops(criterion):
    (x, y), model = data(), net()
    for batch_size in (3, 7):  # 3: batches of different sizes
        options = {"criterion": criterion, "batch_size": batch_size}
        got = channel_importance(model, x, y, ["bn", "next", "last"], normalize=False, **options)
        unit = channel_importance(model, x, y, ["bn", "next", "last"], **options)
        for name, score in got.items():
            expected = literal(name, criterion)
            torch.testing.assert_close(score, expected, rtol=1e-9, atol=1e-14)  # float64, other order of sums
            torch.testing.assert_close(unit[name], expected / (expected**2).sum() ** 0.5, rtol=1e-9, atol=1e-14)
    assert model.training and model.bn.training and all(p.grad is None for p in model.parameters())


def test_the_name_says_before_or_after_the_activation():
    (x, y), model = data(), net()
    scores = channel_importance(model, x, y, ["conv", "bn", "relu"], criterion="activation", normalize=False)
    outs = [model.eval().conv(x), model.bn(model.conv(x)), model.bn(model.conv(x)).relu()]
    for score, out in zip(scores.values(), outs, strict=True):
        torch.testing.assert_close(score, out.abs().mean((0, 2, 3)).detach(), rtol=1e-9, atol=0)


def test_a_linear_loss_makes_the_first_order_exact():
    """Where C is linear in the channel, |ΔC| of one example is M times eq. (8) for it."""
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Conv2d(3, 2, 1), nn.Flatten()).double()
    x, y = data(1)
    options = {"loss": lambda out, labels: out.sum()}
    scores = channel_importance(model, x, y, ["0"], normalize=False, **options)["0"]
    changes = channel_loss_changes(model, x, y, {"0": range(3)}, **options)["0"]
    torch.testing.assert_close(changes.abs(), 16 * scores, rtol=1e-9, atol=0)


def test_changes_of_the_loss_by_weights_at_zero():
    model, (x, y) = net().requires_grad_(False), data()
    changes = channel_loss_changes(model, x, y, {"bn": [2, 0], "last": [1]}, batch_size=3)
    whole = F.cross_entropy(model.eval()(x), y)
    for i, channel in enumerate([2, 0]):
        other = copy.deepcopy(model)
        other.bn.weight.data[channel] = other.bn.bias.data[channel] = 0
        assert float(changes["bn"][i]) == pytest.approx(float(F.cross_entropy(other(x), y) - whole), abs=1e-12)
    other = copy.deepcopy(model)
    other.last.weight.data[1] = other.last.bias.data[1] = 0
    assert float(changes["last"][0]) == pytest.approx(float(F.cross_entropy(other(x), y) - whole), abs=1e-12)


def test_single_weights_by_differences():
    """∂L/∂w by central differences, which err by about 1e-10; |g·w|, |g| and |w| from it."""
    model, (x, y) = net().eval(), data()
    scores = {
        c: weight_importance(model, x, y, criterion=c, batch_size=3) for c in ("taylor", "gradient", "magnitude")
    }
    assert list(scores["taylor"]) == ["conv", "next", "last"]
    for name in ("conv", "next", "last"):
        weight = model.get_submodule(name).weight.data
        for index in range(0, weight.numel(), 5):
            value, losses = float(weight.view(-1)[index]), []
            for step in (1e-5, -1e-5):
                weight.view(-1)[index] = value + step
                losses.append(float(F.cross_entropy(model(x), y).detach()))
            weight.view(-1)[index] = value
            slope = (losses[0] - losses[1]) / 2e-5
            expected = {"taylor": abs(slope * value), "gradient": abs(slope), "magnitude": abs(value)}
            for criterion, want in expected.items():
                assert float(scores[criterion][name].view(-1)[index]) == pytest.approx(want, abs=1e-8)


def test_without_batchnorm_and_dropout_it_is_snips_score():
    model, (x, y) = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.Tanh(), nn.Linear(4, 2)).double(), data()
    mine, theirs = weight_importance(model, x, y), connection_sensitivity(model, x, y)
    for name, scores in mine.items():
        torch.testing.assert_close(scores, theirs[name], rtol=1e-9, atol=1e-15)


def test_what_is_frozen_has_scores_too_and_a_dead_layer_has_zeros():
    model, (x, y) = net().requires_grad_(False), data()
    frozen = channel_importance(model, x, y, ["conv", "bn"])
    free = channel_importance(net(), x, y, ["conv", "bn"])
    assert all(torch.equal(frozen[n], free[n]) for n in free)
    model.next.weight.zero_()
    assert not channel_importance(model, x, y, ["bn"])["bn"].any()


def test_bad_input(as_user):
    model, (x, y) = net(), data()
    with pytest.raises(ValueError, match="criterion must be one of taylor, taylor_inside"):
        channel_importance(model, x, y, ["bn"], criterion="hessian")
    with pytest.raises(ValueError, match="criterion must be one of taylor, gradient, magnitude"):
        weight_importance(model, x, y, criterion="activation")
    for function in (
        lambda *data, **o: channel_importance(model, *data, ["bn"], **o),
        lambda *data, **o: channel_loss_changes(model, *data, {"bn": [0]}, **o),
        lambda *data, **o: weight_importance(model, *data, **o),
    ):
        with pytest.raises(ValueError, match="same length"):
            function(x, y[1:])
        with pytest.raises(ValueError, match="same length"):
            function(x[:0], y[:0])
        with pytest.raises(ValueError, match="inputs holds"):
            function(x / 0, y)
        with pytest.raises(ValueError, match="batch_size must be"):
            function(x, y, batch_size=0)
    with pytest.raises(ValueError, match="no module 'norm'"):
        channel_importance(model, x, y, ["norm"])
    with pytest.raises(ValueError, match="layers is empty"):
        channel_importance(model, x, y, [])
    with pytest.raises(ValueError, match="from 0 to 2, got 3"):
        channel_loss_changes(model, x, y, {"bn": [3]})
    model.spare = nn.Conv2d(1, 1, 1)
    with pytest.raises(ValueError, match=r"did not call \['spare'\]"):
        channel_importance(model, x, y, ["spare"])
    twice = nn.Sequential(nn.Flatten(), nn.Linear(36, 36), nn.Linear(36, 2)).double()
    twice.insert(2, twice[1])
    with pytest.raises(ValueError, match="'1' is called more than once"):
        channel_importance(twice, x, y, ["1"])
    with pytest.raises(ValueError, match="the loss holds"):
        channel_importance(model, x, y, ["bn"], loss=lambda out, labels: out.sum() / 0)
    assert not any(m._forward_hooks for m in model.modules())
