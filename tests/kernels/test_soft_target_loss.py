import pytest
import torch

from mlcomp.distill import soft_target_loss as reference
from mlcomp.kernels.launch import INTERPRETED
from mlcomp.kernels.soft_target_loss import soft_target_loss

DTYPES = [
    torch.float32,
    torch.float16,
    pytest.param(torch.bfloat16, marks=pytest.mark.skipif(INTERPRETED, reason="needs a GPU")),
]
DIRECTIONS = ["forward", "reverse"]


def both(student, teacher, weight=1.0, **options):
    """Return value and gradient by the kernel, and by the reference in float64."""
    found = []
    for function, dtype in ((soft_target_loss, student.dtype), (reference, torch.float64)):
        s = student.detach().to(dtype).requires_grad_()
        loss = function(s, teacher.to(dtype), **options)
        (weight * loss).backward()
        found += [loss.detach(), s.grad]
    return found


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("shape", [(3, 10), (2, 3, 1), (5, 1000), (2, 4097), (1, 9000)])
def test_equals_the_reference(random, shape, temperature, direction):
    student, teacher = 3 * random(*shape), 3 * random(*shape, seed=1)
    loss, gradient, want, slope = both(student, teacher, temperature=temperature, direction=direction)
    assert loss.dtype == torch.float32 and gradient.shape == student.shape
    assert float(abs(loss.double() - want)) <= 1e-5 * max(1.0, float(want))
    assert (gradient.double() - slope).norm() <= 1e-5 * slope.norm() + 1e-6


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_narrow_logits_round_the_gradient_once(random, dtype, direction):
    student, teacher = (3 * random(4, 777)).to(dtype), (3 * random(4, 777, seed=9)).to(dtype)
    loss, gradient, want, slope = both(student, teacher, temperature=2.0, direction=direction)
    assert gradient.dtype == dtype and float(abs(loss.double() - want)) <= 1e-5 * float(want)
    assert (gradient.double() - slope).norm() <= torch.finfo(dtype).eps * slope.norm() + 1e-6


def test_the_upstream_gradient_counts(random):
    student, teacher = random(4, 50), random(4, 50, seed=1)
    _, gradient, _, slope = both(student, teacher, weight=-3.0, temperature=1.0)
    torch.testing.assert_close(gradient.double(), slope, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_far_logits_neither_overflow_nor_vanish(device, direction):
    student = torch.tensor([[0.0, 400.0, -400.0], [1e4, 0.0, 0.0]], device=device)
    teacher = torch.tensor([[400.0, 0.0, -400.0], [1e4, 0.0, 0.0]], device=device)
    loss, gradient, want, slope = both(student, teacher, temperature=1.0, direction=direction)
    torch.testing.assert_close(loss.double(), want, atol=1e-4, rtol=1e-6)
    torch.testing.assert_close(gradient.double(), slope, atol=1e-5, rtol=1e-6)


def test_equal_logits_have_no_loss_and_no_gradient(random):
    x = random(3, 600)
    loss, gradient, *_ = both(x, x + 7, temperature=1.0)
    assert float(loss.abs()) < 1e-5 and float(gradient.abs().max()) < 1e-6


def test_without_a_gradient_and_from_strided_logits(random):
    student, teacher = random(50, 4).T, random(100, 4, seed=1)[::2].T
    got = soft_target_loss(student, teacher, temperature=1.0)
    assert not got.requires_grad
    torch.testing.assert_close(got, reference(student, teacher, temperature=1.0))


def test_bad_input(random, as_user):
    x = random(2, 5)
    for options in ({"temperature": 0.0}, {"temperature": float("inf")}, {"temperature": 1.0, "direction": "both"}):
        with pytest.raises(ValueError, match=r"temperature|direction"):
            soft_target_loss(x, x, **options)
    with pytest.raises(ValueError, match="teacher"):
        soft_target_loss(x, random(2, 6), temperature=1.0)
    with pytest.raises(ValueError, match="at least one sample"):
        soft_target_loss(x[:0], x[:0], temperature=1.0)
    with pytest.raises(TypeError, match="float64"):
        soft_target_loss(x.double(), x.double(), temperature=1.0)
