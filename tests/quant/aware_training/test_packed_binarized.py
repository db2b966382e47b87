import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mlcomp.quant import BinarySign, ShiftBatchNorm, binarized_mlp, fold_thresholds, pack_binarized
from tests.examples import examples


def shaken(net, seed=0):
    """Give every norm statistics and factors as after training, some of γ negative, one 0."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for norm in net:
            if hasattr(norm, "running_mean"):
                units = len(norm.weight)
                norm.running_mean.copy_(5 * torch.randn(units, generator=g))
                norm.running_var.copy_(20 * torch.rand(units, generator=g) + 0.1)
                norm.weight.copy_(torch.randn(units, generator=g))
                norm.weight[0] = 0
                norm.bias.copy_(torch.randn(units, generator=g))
    return net.eval()


def whole(samples, shape, bits, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(2**bits, (samples, *shape), generator=g, dtype=torch.uint8)


@given(
    st.lists(st.integers(1, 40), min_size=2, max_size=4),
    st.integers(1, 8),
    st.sampled_from([nn.BatchNorm1d, ShiftBatchNorm]),
    st.integers(0, 10**6),
)
@examples(40)
def test_equals_the_float_network_bit_for_bit(sizes, bits, norm, seed):
    net = shaken(binarized_mlp(sizes, norm=norm, seed=seed), seed)
    x = whole(20, (sizes[0],), bits, seed)
    with torch.no_grad():
        assert torch.equal(pack_binarized(net, input_bits=bits)(x), net(x.float()))


def test_images_and_dropout():
    net = shaken(binarized_mlp((49, 30, 10)))
    net.insert(4, nn.Dropout(0.5))
    x = whole(12, (1, 7, 7), 8)
    packed = pack_binarized(net.eval())
    with torch.no_grad():
        assert torch.equal(packed(x), net(x.float()))
    # Signs of 30·7 and 10·4 bytes, 30 thresholds, and the last norm: 4 vectors of 10 and a counter of 8 bytes.
    assert packed.nbytes == 30 * 7 + 10 * 4 + 30 * 4 + 4 * 10 * 4 + 8


def test_the_model_may_go_on_training():
    net = shaken(binarized_mlp((9, 8, 3)))
    packed, x = pack_binarized(net, input_bits=4), whole(5, (9,), 4)
    before = packed(x)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1)
        net[-1].running_mean.add_(1)
    assert torch.equal(packed(x), before)


def test_thresholds_are_those_of_the_formula():
    norm = shaken(nn.Sequential(nn.BatchNorm1d(200)), seed=3)[0]
    found = fold_thresholds(norm, 200, 100)
    gamma, beta = norm.weight.detach().double(), norm.bias.detach().double()
    where = norm.running_mean.double() - beta * (norm.running_var.double() + norm.eps).sqrt() / gamma
    z = torch.arange(-100, 101)
    for unit in range(200):
        signs = (z >= found.at[unit]) ^ found.falls[unit]
        if gamma[unit] == 0:
            want = torch.full_like(signs, bool(beta[unit] >= 0))
        else:
            want = z >= where[unit] if gamma[unit] > 0 else z <= where[unit]
        far = (z - where[unit]).abs() > 1e-3 if gamma[unit] != 0 else torch.ones_like(signs)
        assert torch.equal(signs[far], want[far])


def test_every_sum_of_a_norm():
    norm = shaken(nn.Sequential(ShiftBatchNorm(60)), seed=5)[0]
    found = fold_thresholds(norm, 60, 31)
    z = torch.arange(-31, 32, dtype=torch.int32)[:, None].expand(63, 60)
    with torch.no_grad():
        want = norm(z.float()) >= 0
    assert torch.equal(found.signs(z).signs() == 1, want)
    assert norm.running_mean.isfinite().all() and not norm.training


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(),
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)),
        binarized_mlp((3, 4, 2), activation="relu"),
        binarized_mlp((3, 4, 2), weights="real"),
        binarized_mlp((3, 4, 2))[:-1],
        nn.Sequential(*binarized_mlp((3, 4, 2))[:-1], BinarySign()),
    ],
)
def test_other_networks(model, as_user):
    with pytest.raises(TypeError, match="model must be BinaryLinear, norm, BinarySign"):
        pack_binarized(model)


def test_bad_input(as_user):
    net = shaken(binarized_mlp((3, 4, 2)))
    with pytest.raises(ValueError, match="bits must be"):
        pack_binarized(net, input_bits=9)
    with pytest.raises(ValueError, match=r"x must lie in 0 … 3, got 0 … 4"):
        pack_binarized(net, input_bits=2)(torch.tensor([[0, 4, 1]], dtype=torch.uint8))
