import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mlcomp.quant import fit_grid, ste_round, straight_through


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20))
def test_rounds_forward_and_passes_the_gradient_back(values):
    x = torch.tensor(values, requires_grad=True)
    weight = torch.arange(1.0, len(values) + 1)
    y = ste_round(x)
    assert torch.equal(y, torch.round(x.detach()))
    (weight * y.square()).sum().backward()
    assert torch.equal(x.grad, 2 * weight * y.detach())  # the gradient at the rounded values


def test_the_update_of_the_lecture_written_out():
    """W ← W − α ∂loss/∂QW, on a layer and a loss whose gradient is known."""
    torch.manual_seed(0)
    weight, x, target = torch.randn(3, 5), torch.randn(5, 20), torch.randn(3, 20)
    parameter = nn.Parameter(weight.clone())
    optimizer = torch.optim.SGD([parameter], lr=0.05)
    for _ in range(3):
        quantized = fit_grid(parameter.detach(), bits=2).round(parameter.detach())
        loss = (straight_through(parameter, quantized) @ x - target).square().sum() / 20
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        q = fit_grid(weight, bits=2).round(weight)
        weight = weight - 0.05 * 2 / 20 * (q @ x - target) @ x.T
        torch.testing.assert_close(parameter.detach(), weight)


def test_no_gradient_to_the_value_and_bits_equal():
    x = torch.tensor([1e8, 0.1], requires_grad=True)
    value = torch.tensor([1.0, 0.3], requires_grad=True)
    y = straight_through(x, value)
    assert torch.equal(y, value)  # (x + (value − x)) would lose the 1 beside 1e8
    y.sum().backward()
    assert value.grad is None and torch.equal(x.grad, torch.ones(2))


def test_bad_input():
    for value in (torch.ones(2), torch.ones(3, dtype=torch.float64)):
        with pytest.raises(ValueError, match="value must be like x"):
            straight_through(torch.ones(3), value)
