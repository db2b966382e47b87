"""The policy gradient against the derivative of KL(q ‖ p) over all outputs, and the faults of public code."""

import math
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mlcomp.distill import TeacherMixed, minillm, minillm_loss, soft_target_loss
from mlcomp.generate import output_log_probability, sample_outputs
from mlcomp.models import token_decoder
from tests.distill.nets import equal
from tests.generate.models import END, Table, every_output, filled

LENGTH = 3
PROMPT = [0, 1]
OUTPUTS = every_output(LENGTH)
ROWS = torch.tensor([filled(y, LENGTH) for y in OUTPUTS])
STUDENT, TEACHER = Table(0, size=0.7), Table(1, size=1.0)
UNBIASED = {"length_normalized": False, "weights": "product"}


def log_probability(model, output):
    """log p(output | PROMPT), differentiable: a loop over tokens."""
    total, row = 0.0, list(PROMPT)
    for token in output:
        total = total + model(torch.tensor([row]))[0, -1].log_softmax(0)[token]
        row.append(token)
    return total


def divergence(student, teacher):
    """KL(q ‖ p) by its definition, over all outputs."""
    total = 0.0
    for y in OUTPUTS:
        log_q = log_probability(student, y)
        total = total + log_q.exp() * (log_q - log_probability(teacher, y).detach())
    return total


@cache
def exact():
    value = divergence(STUDENT, TEACHER)
    (gradient,) = torch.autograd.grad(value, STUDENT.table)
    return float(value.detach()), gradient


def probabilities(model):
    """The probability of each output."""
    return output_log_probability(model, torch.tensor([PROMPT]).expand(len(ROWS), -1), ROWS, end=END).exp()


def logits(model, outputs):
    rows = torch.cat((torch.tensor([PROMPT]).expand(len(outputs), -1), outputs), 1)
    return model(rows[:, :-1])[:, len(PROMPT) - 1 :]


def enumerated(*, mixing=0.0, **how):
    """The mean over all outputs of the loss and of its gradient, each with its probability under the mixture."""
    student, teacher, total = logits(STUDENT, ROWS), logits(TEACHER, ROWS), 0.0
    for i, probability in enumerate(probabilities(TeacherMixed(STUDENT, TEACHER, mixing))):
        one = slice(i, i + 1)
        total += probability * minillm_loss(student[one], teacher[one], ROWS[one], end=END, mixing=mixing, **how)
    (gradient,) = torch.autograd.grad(total, STUDENT.table)
    return float(total.detach()), gradient


def off(got, want):
    """How far a gradient is from another one, in units of its norm."""
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("single_step", [True, False])
@pytest.mark.parametrize("mixing", [0.0, 0.2, 0.7])
def test_the_mean_gradient_is_that_of_the_divergence(mixing, single_step):
    value, gradient = exact()
    got, estimate = enumerated(mixing=mixing, single_step=single_step, **UNBIASED)
    assert got == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(estimate, gradient, rtol=1e-10, atol=1e-12)


def test_what_is_biased():
    """Weights of one token, and length normalization: both change the mean gradient, neither without cause."""
    _, gradient = exact()
    token = enumerated(mixing=0.2, length_normalized=False)[1]
    assert 0.01 < off(token, gradient) < 0.5
    assert off(enumerated(mixing=1e-9, length_normalized=False)[1], gradient) < 1e-6
    normalized = enumerated()[1]
    assert 0.05 < off(normalized, gradient)


def parts(row):
    """log q, log p, rewards and mask of one output, one number at a time."""
    log_q, log_p = (logits(m, row).log_softmax(-1)[0] for m in (STUDENT, TEACHER))
    own = row[0].tolist()
    count = own.index(END) + 1 if END in own else LENGTH
    picked = [log_q[t, own[t]] for t in range(count)]
    rewards = [float((log_p - log_q)[t, own[t]].detach()) for t in range(count)]
    steps = [(log_q[t].exp() * (log_q[t] - log_p[t].detach())).sum() for t in range(count)]
    return picked, rewards, steps


@pytest.mark.parametrize("single_step", [True, False])
@pytest.mark.parametrize("length_normalized", [True, False])
@pytest.mark.parametrize("weights", ["token", "product"])
def test_each_output_against_a_loop(single_step, length_normalized, weights):
    mixing = 0.3
    for y in ([1, 2, 0], [2, END, END], [END, END, END], [0, 1, END]):
        row = torch.tensor([y])
        picked, r, steps = parts(row)
        w = [1 / (mixing * math.exp(x) + 1 - mixing) for x in r]
        total = 0.0
        for t in range(len(r)):
            if weights == "product":
                before, own = math.prod(w[:t]), math.prod(w[: t + 1])
                later = [math.prod(w[: k + 1]) * r[k] for k in range(t + 1, len(r))]
                here = own * r[t]
            else:
                before = own = w[t]
                later, here = [w[t] * r[k] for k in range(t + 1, len(r))], w[t] * r[t]
            if single_step:
                to_go = sum(later) / len(later) if later and length_normalized else sum(later)
                total = total + before * steps[t] - to_go * picked[t]
            else:
                to_go = (here + sum(later)) / ((len(later) + 1) if length_normalized else 1)
                total = total - (to_go - own) * picked[t]
        (want,) = torch.autograd.grad(total, STUDENT.table)
        how = {"single_step": single_step, "length_normalized": length_normalized, "weights": weights}
        loss = minillm_loss(logits(STUDENT, row), logits(TEACHER, row), row, end=END, mixing=mixing, **how)
        (got,) = torch.autograd.grad(loss, STUDENT.table)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_public_code_counts_the_reward_of_a_token_twice():
    """The exact single step already holds r_t; a reward-to-go that holds it, too, is far from the gradient."""
    _, gradient = exact()
    total = 0.0
    for row, probability in zip(ROWS, probabilities(STUDENT), strict=True):
        picked, r, steps = parts(row[None])
        total = total + probability * sum(steps[t] - sum(r[t:]) * picked[t] for t in range(len(r)))
    (theirs,) = torch.autograd.grad(total, STUDENT.table)
    # Its mean is the gradient plus that of the single steps once more: about twice as long.
    assert 0.5 < off(theirs, gradient) < 1.5
    torch.testing.assert_close(enumerated(**UNBIASED)[1], gradient, rtol=1e-10, atol=1e-12)


def test_the_printed_product_of_weights_ends_too_early():
    """Eq. (5): w of the tokens to t. Rewards after t are then weighted as if the student had not been mixed."""
    _, gradient = exact()
    mixing, total = 0.5, 0.0
    for row, probability in zip(ROWS, probabilities(TeacherMixed(STUDENT, TEACHER, mixing)), strict=True):
        picked, r, steps = parts(row[None])
        w = [1 / (mixing * math.exp(x) + 1 - mixing) for x in r]
        upto = [math.prod(w[: t + 1]) for t in range(len(r))]
        printed = sum(upto[t] * (steps[t] - sum(r[t + 1 :]) * picked[t]) for t in range(len(r)))
        total = total + probability * printed
    (theirs,) = torch.autograd.grad(total, STUDENT.table)
    assert off(theirs, gradient) > 0.01


def test_single_steps_vary_less():
    """Over all outputs, the squared distance from the mean gradient is smaller where y_t is averaged exactly."""

    def variance(single_step):
        mean = enumerated(single_step=single_step, **UNBIASED)[1]
        total = 0.0
        for row, probability in zip(ROWS[:, None], probabilities(STUDENT), strict=True):
            student, teacher = logits(STUDENT, row), logits(TEACHER, row)
            loss = minillm_loss(student, teacher, row, end=END, single_step=single_step, **UNBIASED)
            (one,) = torch.autograd.grad(loss, STUDENT.table)
            total += float(probability * (one - mean).square().sum())
        return total

    assert variance(True) < 0.6 * variance(False)


def test_one_token_is_the_reverse_divergence_of_soft_targets():
    row = torch.tensor([[1], [END], [0]])
    student = logits(STUDENT, row).detach().requires_grad_()
    teacher = logits(TEACHER, row)
    loss = minillm_loss(student, teacher, row, end=END)
    want = soft_target_loss(student, teacher, temperature=1.0, direction="reverse")
    torch.testing.assert_close(loss, want, rtol=1e-12, atol=0)
    for a, b in zip(torch.autograd.grad(loss, student), torch.autograd.grad(want, student), strict=True):
        torch.testing.assert_close(a, b)


def test_what_stands_after_the_end_does_not_count():
    row = torch.tensor([[2, END, 0], [2, END, 1]])
    for how in ({}, {"mixing": 0.4, "weights": "product"}, {"single_step": False}):
        student, teacher = logits(STUDENT, row), logits(TEACHER, row)
        first, second = (
            minillm_loss(student[i : i + 1], teacher[i : i + 1], row[i : i + 1], end=END, **how) for i in (0, 1)
        )
        a, b = (torch.autograd.grad(x, STUDENT.table, retain_graph=True)[0] for x in (first, second))
        assert torch.equal(a, b) and torch.equal(first, second)
        assert not a[4].any()  # the row of the third output's place


def test_a_long_filling_does_not_overflow():
    """Weights behind the end, which may all be large, are multiplied with nothing."""
    row = torch.full((1, 60), END)
    student, teacher = torch.zeros(1, 60, 4), torch.zeros(1, 60, 4)
    student[..., END], teacher[..., 0] = 5.0, 9.0
    student.requires_grad_()
    loss = minillm_loss(student, teacher, row, end=END, mixing=0.99, weights="product")
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.isfinite() and gradient.isfinite().all() and not gradient[:, 1:].any()


def test_a_student_that_is_the_teacher_has_nothing_to_learn():
    row = torch.tensor([[1, 0, 2], [2, END, END]])
    loss = minillm_loss(logits(STUDENT, row), logits(STUDENT, row), row, end=END, mixing=0.2)
    (gradient,) = torch.autograd.grad(loss, STUDENT.table)
    assert abs(float(loss)) < 1e-15 and float(gradient.abs().max()) < 1e-15


def test_the_mixture():
    mixed = TeacherMixed(STUDENT, TEACHER, 0.3)
    tokens = torch.tensor([[0, 1, 2]])
    want = 0.3 * TEACHER(tokens).softmax(-1) + 0.7 * STUDENT(tokens).softmax(-1)
    torch.testing.assert_close(mixed(tokens).exp(), want)
    for share, model in ((0.0, STUDENT), (1.0, TEACHER)):
        torch.testing.assert_close(TeacherMixed(STUDENT, TEACHER, share)(tokens), model(tokens).log_softmax(-1))
    # what is drawn: shares of outputs against their probabilities
    prompts = torch.tensor([PROMPT]).expand(4000, 2)
    drawn = sample_outputs(mixed, prompts, length=2, end=END, seed=1)
    first = F.one_hot(drawn[:, 0], 4).double().mean(0)
    # 4000 draws: a standard deviation below 0.008
    torch.testing.assert_close(first, mixed(prompts[:1])[0, -1].exp(), atol=0.03, rtol=0)


def test_a_mixture_that_goes_on_from_what_it_knows_draws_the_same():
    """Models with ``extend`` against the same ones without."""
    models = [token_decoder(5, 16, 2, seed=seed) for seed in (0, 1)]

    prompts = torch.randint(4, (20, 3), generator=torch.Generator().manual_seed(0))
    for share in (0.0, 0.4):
        fast, slow = TeacherMixed(*models, share), TeacherMixed(*map(nn.Sequential, models), share)
        assert hasattr(fast, "extend") and not hasattr(slow, "extend")
        drawn = [sample_outputs(model, prompts, length=6, end=4, seed=3) for model in (fast, slow)]
        assert torch.equal(*drawn)


RUN = {"length": LENGTH, "end": END, "epochs": 1, "batch_size": 4, "progress": False}
PROMPTS = torch.tensor([[0, 1], [2, 2], [1, 0], [1, 1]])


def test_training_lowers_the_divergence_and_touches_nobody_else():
    student, teacher = Table(0, size=0.7), Table(1, size=1.0)
    run = RUN | {"epochs": 15, "batch_size": 32, "lr": 0.1}
    taught = minillm(student, teacher, torch.tensor([PROMPT]).expand(32, 2), **run)
    with torch.no_grad():
        assert float(divergence(taught.model, teacher)) < 0.5 * float(divergence(student, teacher))
    assert equal(student, Table(0, size=0.7)) and equal(teacher, Table(1, size=1.0))
    assert len(taught.history.loss) == 15
    first, again, other = (minillm(student, teacher, PROMPTS, lr=0.1, seed=s, **RUN).model for s in (0, 0, 1))
    assert equal(first, again) and not equal(first, other)


def test_the_teacher_speaks_in_eval_mode_and_keeps_its_own():
    class Dropping(Table):
        def forward(self, tokens):
            return F.dropout(super().forward(tokens), 0.5, self.training)

    student, teacher = Table(0), Dropping(1)
    moved = [minillm(student, t, PROMPTS, lr=0.1, **RUN).model for t in (teacher.train(), Table(1))]
    assert equal(*moved) and teacher.training


def test_a_step_follows_the_loss():
    """One batch of plain gradient descent moves along the gradient of the loss on outputs that it drew."""
    student, teacher = Table(0, size=0.7), Table(1, size=1.0)
    options = {"optimizer": torch.optim.SGD, "lr": 1e-3, "mixing": 0.2}
    got = minillm(student, teacher, PROMPTS, **RUN, **options)
    moved = (student.table - got.model.table).detach() / 1e-3
    # As the training loop seeds its first epoch.
    generator = torch.Generator().manual_seed(0)
    prompts = PROMPTS[torch.randperm(4, generator=generator)]
    torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
    seed, mixed = int(torch.randint(2**31, ())), TeacherMixed(student, teacher, 0.2)
    drawn = sample_outputs(mixed, prompts, length=LENGTH, end=END, seed=seed)
    rows = torch.cat((prompts, drawn), 1)[:, :-1]
    loss = minillm_loss(student(rows)[:, 1:], teacher(rows)[:, 1:], drawn, end=END, mixing=0.2)
    (want,) = torch.autograd.grad(loss, student.table)
    torch.testing.assert_close(moved, want, rtol=1e-8, atol=1e-10)
    assert got.history.loss[0] == pytest.approx(float(loss.detach()), rel=1e-12)


def test_outputs_have_the_likelihood_of_the_mixture():
    """The library's likelihood of outputs under the mixture is the product of the mixed probabilities."""
    mixed, y = TeacherMixed(STUDENT, TEACHER, 0.4), [2, 0, END]
    got = output_log_probability(mixed, torch.tensor([PROMPT]), torch.tensor([y]), end=END)
    total, row = 0.0, list(PROMPT)
    for token in y:
        q, p = (m(torch.tensor([row]))[0, -1].softmax(0)[token] for m in (STUDENT, TEACHER))
        total += math.log(0.6 * float(q.detach()) + 0.4 * float(p.detach()))
        row.append(token)
    assert float(got) == pytest.approx(total, rel=1e-12)


def test_bad_input(as_user):
    row, x = torch.tensor([[1, 0, END]]), torch.zeros(1, 3, 4)
    good = {"student": x, "teacher": x, "outputs": row, "end": END}
    for changed, message in (
        ({"mixing": 1.0}, "mixing"),
        ({"weights": "all"}, "weights"),
        ({"outputs": row + 1}, "outputs"),
        ({"outputs": row[:, :2]}, "outputs"),
        ({"teacher": x[..., :2]}, "teacher"),
        ({"student": x[0], "teacher": x[0]}, "student"),
        ({"student": x / 0}, "NaN"),
        ({"end": -1}, "end"),
    ):
        with pytest.raises(ValueError, match=message):
            minillm_loss(**(good | changed))
    with pytest.raises(ValueError, match="mixing"):
        TeacherMixed(STUDENT, TEACHER, 1.5)


def test_bad_runs(as_user):
    student, teacher = Table(0), Table(1)
    for changed, message in (
        ({"loss": F.cross_entropy}, "loss cannot be given"),
        ({"length": 0}, "length"),
        ({"mixing": 1.0}, "mixing"),
        ({"weights": "none"}, "weights"),
        ({"end": 9}, "end"),
        ({"lr": 0.0}, "lr"),
    ):
        with pytest.raises(ValueError, match=message):
            minillm(student, teacher, PROMPTS, **(RUN | {"lr": 0.1} | changed))
    with pytest.raises(ValueError, match="prompts"):
        minillm(student, teacher, PROMPTS[:0], lr=0.1, **RUN)
    assert equal(student, Table(0))
