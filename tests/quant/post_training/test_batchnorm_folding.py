import pytest
import torch
from torch import nn

from mlcomp.models import convnet
from mlcomp.quant import batchnorm_pairs, fold_batchnorm


def settle(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every BatchNorm statistics and an affine map that are far from those it starts with."""
    g = torch.Generator().manual_seed(seed)
    for bn in model.modules():
        if isinstance(bn, nn.modules.batchnorm._BatchNorm) and bn.running_mean is not None:
            bn.running_mean.copy_(torch.randn(bn.num_features, generator=g))
            bn.running_var.copy_(torch.rand(bn.num_features, generator=g) + 0.1)
            if bn.affine:
                nn.init.normal_(bn.weight, generator=g)  # negative factors, too
                nn.init.normal_(bn.bias, generator=g)
    return model


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_folding_is_exact_in_float64(groups, affine, bias):
    torch.manual_seed(groups)
    conv = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=groups, bias=bias)
    model = settle(nn.Sequential(conv, nn.BatchNorm2d(8, eps=0.01, affine=affine), nn.ReLU())).double()
    x = torch.randn(5, 4, 9, 9, dtype=torch.float64)
    result = fold_batchnorm(model)
    assert isinstance(result[1], nn.Identity) and not result.training
    torch.testing.assert_close(result(x), model.eval()(x), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("conv", "bn"), [(nn.Conv1d, nn.BatchNorm1d), (nn.Conv3d, nn.BatchNorm3d)])
def test_other_dimensions(conv, bn):
    model = settle(nn.Sequential(conv(2, 4, 2), bn(4))).double().eval()
    x = torch.randn(3, 2, *[4] * (model[0].weight.ndim - 2), dtype=torch.float64)
    torch.testing.assert_close(fold_batchnorm(model)(x), model(x), rtol=1e-13, atol=1e-13)


def test_the_course_network_with_residual_grouped_and_depthwise_layers(as_user):
    # as_user: torch.fx traces with stand-ins for tensors, which the shape checker of the tests does not let pass.
    model = convnet().double()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    result = fold_batchnorm(model)
    x = torch.rand(8, 1, 28, 28, dtype=torch.float64)
    torch.testing.assert_close(result(x), model(x), rtol=1e-12, atol=1e-12)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in result.modules())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    pairs, reasons = batchnorm_pairs(model)
    assert len(pairs) == 11 and not reasons and ("block1.shortcut.conv", "block1.shortcut.bn") in pairs
    assert all(m.bias is not None for m in result.modules() if isinstance(m, nn.Conv2d))


class Crossed(nn.Module):
    """Defined in another order than it is used in: pairing by order of definition would be wrong."""

    def __init__(self):
        super().__init__()
        self.a, self.bn_b = nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)
        self.b, self.bn_a = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.bn_b(self.b(torch.relu(self.bn_a(self.a(x)))))


def test_pairs_follow_the_data_not_the_definition():
    model = settle(Crossed()).double().eval()
    assert batchnorm_pairs(model)[0] == (("a", "bn_a"), ("b", "bn_b"))
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(fold_batchnorm(model)(x), model(x), rtol=1e-13, atol=1e-13)


class Odd(nn.Module):
    """Five BatchNorm layers that cannot be folded, and one that can."""

    def __init__(self):
        super().__init__()
        self.first, self.conv, self.twice = nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
        self.good, self.shared, self.after_two, self.batch = (nn.BatchNorm2d(2) for _ in range(4))
        self.good_conv, self.batch_conv = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
        self.batch = nn.BatchNorm2d(2, track_running_stats=False)
        self.unused = nn.BatchNorm2d(2)

    def forward(self, x):
        y = self.conv(self.first(x))
        z = self.after_two(self.twice(self.twice(self.shared(y) + y)))
        return self.batch(self.batch_conv(self.good(self.good_conv(z))))


def test_what_cannot_be_folded_is_refused_with_the_reason():
    model = settle(Odd()).double().eval()
    pairs, reasons = batchnorm_pairs(model)
    assert pairs == (("good_conv", "good"),)
    assert "does not come straight" in reasons["first"] and "also read elsewhere" in reasons["shared"]
    assert "more than once" in reasons["after_two"] and "no running statistics" in reasons["batch"]
    assert reasons["unused"] == "never called" and len(reasons) == 5
    with pytest.raises(ValueError, match="'shared': the output of 'conv' is also read elsewhere"):
        fold_batchnorm(model)
    x = torch.randn(4, 2, 3, 3, dtype=torch.float64)
    result = fold_batchnorm(model, partial=True)
    torch.testing.assert_close(result(x), model(x), rtol=1e-12, atol=1e-12)
    assert isinstance(result.good, nn.Identity) and isinstance(result.first, nn.BatchNorm2d)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x):
        y = self.bn(self.conv(x))
        return y if y.sum() > 0 else -y


def test_given_pairs_serve_where_tracing_cannot():
    model = settle(Branching()).double().eval()
    with pytest.raises(ValueError, match=r"torch\.fx cannot trace Branching"):
        fold_batchnorm(model)
    x = torch.randn(2, 1, 3, 3, dtype=torch.float64)
    folded = fold_batchnorm(model, pairs=[("conv", "bn")])
    torch.testing.assert_close(folded(x), model(x), rtol=1e-13, atol=1e-13)


def test_bad_input():
    with pytest.raises(ValueError, match="no BatchNorm layer to fold"):
        fold_batchnorm(nn.Sequential(nn.Conv2d(1, 1, 1)))
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 3, 1))
    for pairs, message in (
        ([("0", "9")], "no module '9'"),
        ([("2", "1")], "follows ReLU"),
        ([("0", "2")], "ReLU is no BatchNorm"),
        ([("3", "1")], "2 channels and the convolution 3"),
    ):
        with pytest.raises(ValueError, match=message):
            fold_batchnorm(model, pairs=pairs)
    linear = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match="follows Linear, not a convolution"):
        fold_batchnorm(linear)
    nn.utils.parametrizations.weight_norm(model[0])
    with pytest.raises(ValueError, match="parametrization"):
        fold_batchnorm(model)
