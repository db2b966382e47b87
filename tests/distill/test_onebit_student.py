import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mlcomp.distill import onebit_loss, onebit_student
from mlcomp.quant import finish_onebit, prepare_onebit
from tests.distill.nets import equal, seeded

EXACT = {"rtol": 1e-10, "atol": 1e-12}  # float64 rounding


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def given():
    """Logits and the states of two layers of student and teacher, for 2 × 3 positions."""
    states = {"student_hidden": [drawn(2, 3, 5, seed=i) for i in (2, 3)]}
    states["teacher_hidden"] = [drawn(2, 3, 5, seed=i) for i in (4, 5)]
    return drawn(2, 3, 4), drawn(2, 3, 4, seed=1), states


def by_hand(s, t, states, soft, hidden_weight):
    """Both losses, one position at a time; KL as cross-entropy minus the teacher's entropy."""
    divergence, distance = [], []
    for i in range(2):
        for j in range(3):
            p, q = ([math.exp(float(x)) for x in z[i, j]] for z in (s, t))
            p, q = ([x / sum(row) for x in row] for row in (p, q))
            entropy = -sum(b * math.log(b) for b in q)
            divergence.append(-sum(b * math.log(a) for a, b in zip(p, q, strict=True)) - entropy)
            squares = 0.0
            for ours, theirs in zip(*states.values(), strict=True):
                u, v = ([float(x) for x in h[i, j]] for h in (ours, theirs))
                squares += sum((a / math.hypot(*u) - b / math.hypot(*v)) ** 2 for a, b in zip(u, v, strict=True))
            distance.append(squares)
    return soft * sum(divergence) / 6 + hidden_weight * sum(distance) / 6


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.0, 2.0), (0.5, 0.0)])
def test_it_is_the_two_losses_written_out(weights):
    s, t, states = given()
    got = onebit_loss(s, t, **states, soft=weights[0], hidden_weight=weights[1])
    assert float(got) == pytest.approx(by_hand(s, t, states, *weights), rel=1e-10)
    if weights == (1.0, 1.0):
        assert torch.equal(got, onebit_loss(s, t, **states))  # the defaults


def test_the_gradient_is_that_of_the_printed_cross_entropy():
    """A mean over positions of p − q; none goes to the teacher. The hidden term is 2 (1 − cos)."""
    s, t, states = given()
    for x in (s, t, *states["student_hidden"], *states["teacher_hidden"]):
        x.requires_grad_()
    onebit_loss(s, t, **states).backward()
    assert t.grad is None and all(x.grad is None for x in states["teacher_hidden"])
    printed = -(t.detach().softmax(-1) * s.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(s.grad, torch.autograd.grad(printed, s)[0], **EXACT)
    u, v = (states[name][0].detach() for name in ("student_hidden", "teacher_hidden"))
    one = onebit_loss(s, t, student_hidden=[u], teacher_hidden=[v], soft=0.0)
    torch.testing.assert_close(one, 2 * (1 - F.cosine_similarity(u, v, dim=-1)).mean(), **EXACT)


def test_equal_outputs_and_states_of_any_size_cost_nothing():
    s, _, states = given()
    longer = [7 * x for x in states["student_hidden"]]
    assert abs(float(onebit_loss(s, s + 3, student_hidden=states["student_hidden"], teacher_hidden=longer))) < 1e-12
    assert float(onebit_loss(s, s, student_hidden=[], teacher_hidden=[])) == 0
    zero = torch.zeros(2, 3, 5)
    assert float(onebit_loss(s, s, student_hidden=[zero], teacher_hidden=[drawn(2, 3, 5)])) == pytest.approx(1)


def test_a_step_of_plain_gradient_descent_by_hand():
    """With one full batch and SGD, the parameters move by the gradient of the loss of the two networks' outputs."""
    teacher = seeded(lambda: nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)).double().eval())
    student, x = prepare_onebit(teacher), drawn(12, 8)
    run = {"epochs": 1, "lr": 0.1, "batch_size": 12, "optimizer": torch.optim.SGD, "progress": False}
    before = copy.deepcopy(student)
    model = onebit_student(student, teacher, x, hidden=["0"], hidden_weight=2.0, **run)
    assert equal(before, student)
    u, v = student[0](x), teacher[0](x).detach()
    p, q = student(x).log_softmax(1), teacher(x).detach().log_softmax(1)
    distance = (u / u.norm(dim=1, keepdim=True) - v / v.norm(dim=1, keepdim=True)).square().sum(1)
    ((q.exp() * (q - p)).sum(1).mean() + 2 * distance.mean()).backward()
    for (name, old), new in zip(student.named_parameters(), model.model.parameters(), strict=True):
        torch.testing.assert_close(new, old - 0.1 * old.grad, msg=name, **EXACT)


def test_training_brings_the_outputs_back_and_the_student_can_be_packed():
    teacher = seeded(
        lambda: nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4))
    )
    student, x = prepare_onebit(teacher), drawn(64, 8).float()
    run = {"epochs": 15, "lr": 1e-2, "batch_size": 32, "progress": False}
    taught = onebit_student(student, teacher, x, hidden=["0", "2"], **run)
    assert taught.history.loss[-1] < 0.8 * taught.history.loss[0]
    assert teacher.training and taught.model.training  # as they were
    packed = finish_onebit(taught.model, dtype=torch.float32).model
    torch.testing.assert_close(packed(x), taught.model(x), rtol=1e-4, atol=1e-4)


def test_bad_input(as_user):
    s, t, states = given()
    for options, told in (
        ({"soft": -1.0}, "soft"),
        ({"hidden_weight": math.nan}, "hidden_weight"),
        ({"teacher_hidden": states["teacher_hidden"][:1]}, "as many layers"),
        ({"teacher_hidden": [drawn(2, 3, 6)] * 2}, "student"),
        ({"student_hidden": [drawn(0, 5)] * 2, "teacher_hidden": [drawn(0, 5)] * 2}, "hold something"),
    ):
        with pytest.raises(ValueError, match=told):
            onebit_loss(s, t, **states | options)
    teacher = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))
    student, x = prepare_onebit(teacher), torch.randn(4, 8)
    run = {"epochs": 1, "lr": 0.1, "progress": False}
    for options, told in (
        ({"hidden": ["7"]}, "no layer '7'"),
        ({"hidden": ["0"], "loss": F.mse_loss}, "loss is taken"),
        ({"hidden": [], "inputs": x[:0]}, "no sample"),
        ({"hidden": [], "soft": -1.0}, "soft"),
    ):
        with pytest.raises(ValueError, match=told):
            onebit_student(student, teacher, **{"inputs": x} | options | run)
