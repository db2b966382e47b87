import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from mlcomp.distill import distillation_loss, soft_target_loss, soft_targets
from mlcomp.metrics import kl_divergence

EXACT = {"rtol": 1e-10, "atol": 1e-12}  # float64 rounding


def logits(*shape, seed=0, size=3.0):
    return size * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(n=5, classes=4):
    return logits(n, classes).requires_grad_(), logits(n, classes, seed=1)


def by_hand(first, second, temperature):
    """T²·KL(first ‖ second), from logits, one number at a time."""
    total = 0.0
    for a, b in zip(first.tolist(), second.tolist(), strict=True):
        u, v = ([math.exp(x / temperature) for x in row] for row in (a, b))
        u, v = ([x / sum(row) for x in row] for row in (u, v))
        total += sum(x * math.log(x / y) for x, y in zip(u, v, strict=True))
    return temperature**2 * total / len(first)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_it_is_the_divergence_written_out(temperature):
    s, t = pair()
    forward = soft_target_loss(s, t, temperature=temperature)
    assert float(forward.detach()) == pytest.approx(by_hand(t, s.detach(), temperature), rel=1e-10)
    reverse = soft_target_loss(s, t, temperature=temperature, direction="reverse")
    assert float(reverse.detach()) == pytest.approx(by_hand(s.detach(), t, temperature), rel=1e-10)
    torch_says = F.kl_div((s / temperature).log_softmax(1), (t / temperature).softmax(1), reduction="batchmean")
    torch.testing.assert_close(forward, temperature**2 * torch_says, **EXACT)
    measured = kl_divergence(t / temperature, s.detach() / temperature)
    assert float(forward.detach()) == pytest.approx(temperature**2 * measured, rel=1e-10)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_the_gradient_has_a_closed_form(temperature):
    s, t = pair()
    p, q = ((z.detach() / temperature).softmax(1) for z in (s, t))
    (forward,) = torch.autograd.grad(soft_target_loss(s, t, temperature=temperature), s)
    torch.testing.assert_close(forward, temperature * (p - q) / len(s), **EXACT)
    (reverse,) = torch.autograd.grad(soft_target_loss(s, t, temperature=temperature, direction="reverse"), s)
    ratio = (p / q).log()
    inner = ratio - (p * ratio).sum(1, keepdim=True)
    torch.testing.assert_close(reverse, temperature * p * inner / len(s), **EXACT)


def test_the_limit_is_that_of_high_temperatures():
    s, t = pair()
    classes = s.shape[1]
    centred = [z.detach() - z.detach().mean(1, keepdim=True) for z in (s, t)]
    limit = soft_target_loss(s, t, temperature=math.inf)
    want = (centred[0] - centred[1]).square().sum(1).mean() / (2 * classes)
    torch.testing.assert_close(limit.detach(), want, **EXACT)
    (gradient,) = torch.autograd.grad(limit, s)
    torch.testing.assert_close(gradient, (centred[0] - centred[1]) / (classes * len(s)), **EXACT)
    errors = []
    for temperature in (1e3, 1e4):
        value = soft_target_loss(s, t, temperature=temperature)
        errors.append(abs(float((value - limit).detach())))
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.1)  # the next term is of order 1/T


def test_the_gradient_keeps_its_size():
    """Without T² it would shrink as 1/T²."""
    s, t = pair(20, 10)
    sizes = [
        float(torch.autograd.grad(soft_target_loss(s, t, temperature=T), s)[0].norm()) for T in (20.0, 80.0, math.inf)
    ]
    assert max(sizes) < 1.3 * min(sizes)


def test_no_gradient_goes_to_the_teacher():
    s, t = pair()
    t.requires_grad_()
    soft_target_loss(s, t, temperature=2.0).backward()
    assert t.grad is None and s.grad is not None


def test_labels_and_soft_targets_are_mixed():
    s, t = pair()
    y = torch.tensor([0, 3, 1, 1, 2])
    hard = -torch.stack([s[i].log_softmax(0)[c] for i, c in enumerate(y)]).mean()
    soft = soft_target_loss(s, t, temperature=3.0)
    for alpha in (0.0, 0.3, 1.0):
        got = distillation_loss(s, t, y, temperature=3.0, alpha=alpha)
        torch.testing.assert_close(got, (1 - alpha) * hard + alpha * soft, **EXACT)


def test_every_position_of_a_sequence_is_a_sample():
    s, t = logits(2, 3, 4), logits(2, 3, 4, seed=1)
    y = torch.tensor([[0, 1, 2], [3, 0, 1]])
    flat = distillation_loss(s.view(6, 4), t.view(6, 4), y.view(6), temperature=2.0, alpha=0.5)
    torch.testing.assert_close(distillation_loss(s, t, y, temperature=2.0, alpha=0.5), flat, **EXACT)


def test_soft_targets():
    z = torch.tensor([0.0, math.log(4.0)])
    torch.testing.assert_close(soft_targets(z, temperature=1.0), torch.tensor([0.2, 0.8]))
    torch.testing.assert_close(soft_targets(z, temperature=2.0), torch.tensor([1 / 3, 2 / 3]))
    torch.testing.assert_close(soft_targets(z, temperature=math.inf), torch.tensor([0.5, 0.5]))


@given(st.integers(0, 10_000), st.floats(0.3, 30.0), st.floats(-50.0, 50.0))
def test_it_is_zero_for_logits_that_differ_by_a_constant_and_else_positive(seed, temperature, constant):
    s, t = logits(3, 5, seed=seed), logits(3, 5, seed=seed + 1)
    for direction in ("forward", "reverse"):
        assert soft_target_loss(s, t, temperature=temperature, direction=direction) > 0
        same = soft_target_loss(s + constant, s, temperature=temperature, direction=direction)
        assert abs(float(same)) < 1e-9
    assert float(soft_target_loss(s + constant, s, temperature=math.inf)) < 1e-20


def test_narrow_logits_are_computed_in_float32():
    s, t = logits(4, 3).half(), logits(4, 3, seed=1).half()
    got = soft_target_loss(s, t, temperature=4.0)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, soft_target_loss(s.float(), t.float(), temperature=4.0))
    assert soft_targets(s, temperature=1.0).dtype == torch.float32


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, "4", None, True])
def test_a_bad_temperature_is_refused(temperature, as_user):
    s, t = logits(2, 3), logits(2, 3)
    with pytest.raises(ValueError, match="temperature"):
        soft_target_loss(s, t, temperature=temperature)
    with pytest.raises(ValueError, match="temperature"):
        soft_targets(s, temperature=temperature)


def test_bad_input_is_refused(as_user):
    s, t, y = logits(2, 3), logits(2, 3, seed=1), torch.tensor([0, 2])
    with pytest.raises(ValueError, match="teacher must be"):
        soft_target_loss(s, t[:1], temperature=1.0)
    with pytest.raises(ValueError, match="direction must be one of"):
        soft_target_loss(s, t, temperature=1.0, direction="backward")
    with pytest.raises(ValueError, match="at least one sample"):
        soft_target_loss(s[:0], t[:0], temperature=1.0)
    with pytest.raises(ValueError, match="at least one class"):
        soft_targets(s[:, :0], temperature=1.0)
    with pytest.raises(ValueError, match="alpha"):
        distillation_loss(s, t, y, temperature=1.0, alpha=1.5)
    with pytest.raises(ValueError, match="labels must lie in 0 … 2"):
        distillation_loss(s, t, y + 1, temperature=1.0, alpha=0.5)
    with pytest.raises(ValueError, match="labels must be"):
        distillation_loss(s, t, y[:1], temperature=1.0, alpha=0.5)
