import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mlcomp.quant import ShiftAdaMax, ShiftBatchNorm, nearest_power
from mlcomp.quant.aware_training import shift_based


@given(st.floats(1e-30, 1e30))
def test_nearest_on_the_log_scale(value):
    power = Fraction(float(nearest_power(torch.tensor(value, dtype=torch.float64))))
    exponent = power.numerator.bit_length() - power.denominator.bit_length()
    assert Fraction(2) ** exponent == power
    # Exactly: power²/2 < value² ≤ 2·power², between the squared geometric means with both neighbours.
    assert power**2 / 2 < Fraction(value) ** 2 <= 2 * power**2


def test_powers_by_hand():
    x = torch.tensor([1.0, 1.41, 1.42, 1.5, -2.9, -2.8, 0.0, 3e-39, 0.75, -0.0])
    assert nearest_power(x).tolist() == [1, 1, 2, 2, -4, -2, 0, 2**-128, 1, 0]
    x = x.requires_grad_()
    nearest_power(x).sum().backward()
    assert x.grad.tolist() == [1] * 10


def test_batchnorm_is_its_definition():
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5.0, 0.1]) + 2
    norm = ShiftBatchNorm(3, eps=1e-4, momentum=0.25)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 3.0, -0.3]))
        norm.bias.copy_(torch.tensor([0.0, 1.0, 2.0]))

    def ap2(value):
        return math.copysign(2.0 ** round(math.log2(abs(value))), value)

    y = norm(x)
    for unit in range(3):
        column = x[:, unit].tolist()
        mean = sum(column) / 50
        variance = sum((v - mean) * ap2(v - mean) for v in column) / 50
        scale, gamma = ap2(1 / math.sqrt(variance + 1e-4)), ap2(float(norm.weight.detach()[unit]))
        want = [gamma * (v - mean) * scale + float(norm.bias.detach()[unit]) for v in column]
        assert y[:, unit].tolist() == pytest.approx(want, abs=1e-4)
        assert float(norm.running_mean[unit]) == pytest.approx(0.25 * mean, rel=1e-4)
        assert float(norm.running_var[unit]) == pytest.approx(0.75 + 0.25 * variance, rel=1e-4)
    before = norm.running_mean.clone()
    fixed = norm.eval()(x)
    assert torch.equal(norm.running_mean, before)
    powers = nearest_power((norm.running_var + 1e-4).rsqrt())
    torch.testing.assert_close(fixed, nearest_power(norm.weight) * (x - before) * powers + norm.bias)


def test_batchnorm_without_shifts_is_torchs(monkeypatch):
    monkeypatch.setattr(shift_based, "nearest_power", lambda x: x)
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    ours, theirs = ShiftBatchNorm(4), nn.BatchNorm1d(4)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)
    weights = torch.arange(80.0).reshape(20, 4)
    (a,) = torch.autograd.grad((ours(x) * weights).sum(), x)
    (b,) = torch.autograd.grad((theirs(x) * weights).sum(), x)
    torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-4)


def test_the_spread_of_a_unit_is_near_one():
    x = 7 * torch.randn(5000, 1, generator=torch.Generator().manual_seed(2))
    # Both roundings are within a factor √2 of the value.
    assert 0.5 < float(ShiftBatchNorm(1)(x).std()) < 2


def run(optimizer, steps=12):
    p = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
    made = optimizer([p])
    g = torch.Generator().manual_seed(0)
    for _ in range(steps):
        p.grad = torch.randn(3, generator=g)
        made.step()
    return p.detach()


def test_adamax_without_shifts_is_torchs(monkeypatch):
    monkeypatch.setattr(shift_based, "nearest_power", lambda x: x)
    ours = run(lambda p: ShiftAdaMax(p, lr=0.01, betas=(0.9, 0.99)))
    theirs = run(lambda p: torch.optim.Adamax(p, lr=0.01, betas=(0.9, 0.99), eps=0.0))
    torch.testing.assert_close(ours, theirs)


def test_adamax_by_hand():
    """Two steps of one weight with the source's powers of two: every factor is a power of two."""
    p = nn.Parameter(torch.tensor([1.0]))
    optimizer = ShiftAdaMax([p])
    p.grad = torch.tensor([3.0])
    optimizer.step()
    # m = 3/8; α/(1 − β₁) = 2⁻¹⁰·8 = 2⁻⁷; AP2(1/3) = 1/4, since 1/3 is below √2/4.
    assert float(p.detach()) == 1 - 2**-7 * 3 / 8 / 4
    p.grad = torch.tensor([0.0])
    optimizer.step()
    # m = 21/64; 1 − β₁² = 15/64, α/… = 2⁻¹⁰·4.27 → 2⁻⁸; v = 3·(1 − 2⁻¹⁰), its inverse still rounds to 1/4.
    assert float(p.detach()) == 1 - 2**-7 * 3 / 8 / 4 - 2**-8 * 21 / 64 / 4
    assert float(optimizer.state[p]["largest"]) == 3 * (1 - 2**-10)


def test_the_largest_gradient_is_forgotten():
    """A rounded state would not decay: 0.999·2^k rounds to 2^k again."""
    p = nn.Parameter(torch.zeros(1))
    optimizer = ShiftAdaMax([p])
    p.grad = torch.tensor([8.0])
    optimizer.step()
    p.grad = torch.zeros(1)
    for _ in range(700):
        optimizer.step()
    assert float(optimizer.state[p]["largest"]) == pytest.approx(8 * (1 - 2**-10) ** 700, rel=1e-3)


def test_zero_gradients_and_closures():
    p = nn.Parameter(torch.ones(2))
    optimizer = ShiftAdaMax([p])
    p.grad = torch.zeros(2)
    optimizer.step()
    assert p.tolist() == [1, 1]

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    assert float(optimizer.step(closure).detach()) == 2
    assert (p < 1).all()
    other = nn.Parameter(torch.ones(1))
    ShiftAdaMax([other]).step()  # without a gradient nothing moves
    assert other.tolist() == [1]


@pytest.mark.parametrize(
    "call",
    [
        lambda: nearest_power(torch.tensor([float("inf")])),
        lambda: nearest_power(torch.tensor([65504.0]).half()),
        lambda: ShiftBatchNorm(0),
        lambda: ShiftBatchNorm(3, eps=0.0),
        lambda: ShiftBatchNorm(3, momentum=1.5),
        lambda: ShiftAdaMax([nn.Parameter(torch.ones(1))], lr=0.0),
        lambda: ShiftAdaMax([nn.Parameter(torch.ones(1))], betas=(0.9, 1.0)),
        lambda: ShiftAdaMax([nn.Parameter(torch.ones(1))], weight_decay=0.1),
    ],
)
def test_bad_input(call, as_user):
    with pytest.raises(ValueError, match=r"must|infinite|ends at"):
        call()
