import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.quant import lsq_initial_step, lsq_quantize, ste_round

GRIDS = st.sampled_from([(0, 3), (-2, 1), (0, 15), (-8, 7), (-128, 127), (0, 1)])


def random(seed: int, *shape: int) -> torch.Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(GRIDS, st.integers(0, 2**31), st.floats(0.05, 2.0))
def test_values_and_gradients_against_autograd_through_the_rounding(grid, seed, step):
    """s·round_ste(clip(v/s)), differentiated by torch, is the paper's derivation of eq. (3)."""
    low, high = grid
    v, weight = random(seed, 40).requires_grad_(), random(seed + 1, 40)
    s = torch.tensor(step, dtype=torch.float64, requires_grad=True)
    y = lsq_quantize(v, s, low=low, high=high)
    (y * weight).sum().backward()
    v2, s2 = v.detach().clone().requires_grad_(), s.detach().clone().requires_grad_()
    y2 = s2 * ste_round((v2 / s2).clamp(low, high))
    (y2 * weight).sum().backward()
    assert torch.equal(y, y2)
    torch.testing.assert_close(v.grad, v2.grad)
    torch.testing.assert_close(s.grad, s2.grad / math.sqrt(40 * high))


def test_the_formula_of_the_paper_number_by_number():
    v = torch.tensor([-1.9, -0.6, 0.2, 0.35, 0.9, 5.0], dtype=torch.float64, requires_grad=True)
    for i, wanted in enumerate([-2, -1 + 1.2, 0 - 0.4, 1 - 0.7, 1, 1]):  # step 0.5, codes −2 … 1
        s = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        lsq_quantize(v[i : i + 1], s, low=-2, high=1, count=1).sum().backward()
        assert float(s.grad) == pytest.approx(wanted, abs=1e-12)
    assert torch.equal(v.grad, torch.tensor([0.0, 1, 1, 1, 0, 0], dtype=torch.float64))


def test_finite_differences_where_the_quantizer_is_differentiable():
    """In s it is, almost everywhere: s·round(v/s) has slope v̄. LSQ adds −v/s inside, what the rounding hides."""
    v, h = random(3, 200), 1e-7
    s = torch.tensor(0.37, dtype=torch.float64)

    def value(step):
        return torch.round((v / step).clamp(-4, 3)) * step

    slope = (value(s + h) - value(s - h)) / (2 * h)
    step = s.clone().expand(200).clone().requires_grad_()
    lsq_quantize(v, step, low=-4, high=3, count=1).sum().backward()
    ratio = v / s
    inside = (ratio > -4) & (ratio < 3)
    assert 20 < int(inside.sum()) < 180
    wanted = (slope - torch.where(inside, ratio, torch.zeros_like(v))) / math.sqrt(3)
    torch.testing.assert_close(step.grad, wanted, rtol=1e-6, atol=1e-6)


def test_each_row_has_its_own_step_and_count():
    v, s = random(0, 3, 10), torch.tensor([[0.3], [0.5], [1.0]], dtype=torch.float64, requires_grad=True)
    lsq_quantize(v, s, low=-2, high=1).sum().backward()
    for i in range(3):
        alone = s[i : i + 1].detach().clone().requires_grad_()
        lsq_quantize(v[i : i + 1], alone, low=-2, high=1, count=10).sum().backward()
        torch.testing.assert_close(s.grad[i : i + 1], alone.grad)
    one, four = (s.detach().clone().requires_grad_() for _ in range(2))
    for step, count in ((one, 1), (four, 4)):
        lsq_quantize(v, step, low=-2, high=1, count=count).sum().backward()
    torch.testing.assert_close(one.grad, 2 * four.grad)


def test_learning_the_step_finds_the_best_one():
    """Gradient descent on ‖v − v̂‖² with LSQ's gradient, against a search over all steps."""
    v = random(5, 2000)
    s = lsq_initial_step(v, high=3).clone().requires_grad_()
    assert float(s.detach()) == pytest.approx(2 * float(v.abs().mean()) / math.sqrt(3))

    def loss(step):
        return float((torch.round((v / step).clamp(-4, 3)) * step - v).square().mean())

    optimizer = torch.optim.SGD([s], lr=0.5)
    for _ in range(300):
        # LSQ's slope is 2(v̂ − v)²/s for a value inside: s/6 on average, the derivative of rounding's error s²/12.
        y = lsq_quantize(v, s, low=-4, high=3, count=1)
        optimizer.zero_grad()
        (2 * (y - v).detach() * y).mean().backward()
        optimizer.step()
    best = min(loss(step) for step in torch.linspace(0.2, 3, 500, dtype=torch.float64))
    assert loss(s.detach()) < 1.02 * best < 0.9 * loss(2 * s.detach())


def test_initial_step_of_rows_and_zeros():
    v = random(0, 3, 10)
    v[1] = 0
    step = lsq_initial_step(v, high=7, dim=1)
    assert step.shape == (3, 1) and step[1] == 1
    torch.testing.assert_close(step[0, 0], 2 * v[0].abs().mean() / math.sqrt(7))
    assert lsq_initial_step(torch.zeros(4), high=1) == 1


def test_bad_input():
    v, s = torch.ones(4), torch.tensor(1.0)
    for low, high in ((-1, 0), (1, 3), (0, 0)):
        with pytest.raises(ValueError, match="codes must run"):
            lsq_quantize(v, s, low=low, high=high)
    for bad in (0.0, -1.0):
        with pytest.raises(ValueError, match="step must be positive"):
            lsq_quantize(v, torch.tensor(bad), low=0, high=3)
    with pytest.raises(ValueError, match="step holds"):
        lsq_quantize(v, torch.tensor(torch.nan), low=0, high=3)
    with pytest.raises(ValueError, match="count must be"):
        lsq_quantize(v, s, low=0, high=3, count=0)
