import copy
import itertools
import sys
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mlcomp.train import meta_pseudo_labels, random_batches, train
from mlcomp.train.loop import learning_rate_share
from mlcomp.train.meta_pseudo_labels import student_gain

SGD = torch.optim.SGD


def net(seed, classes=2, hidden=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, classes)).double()


def data(labelled=4, unlabelled=1, seed=0):
    g = torch.Generator().manual_seed(seed)
    x, u = (torch.randn(n, 2, generator=g, dtype=torch.float64) for n in (labelled, unlabelled))
    return x, torch.arange(labelled) % 2, u


def equal(a, b):
    return all(torch.equal(u, v) for u, v in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def new_loss(student, u, drawn, x, y, lr):
    """The student's loss on labels after a step of gradient descent on the drawn ones, written out."""
    weights = dict(student.named_parameters())
    loss = F.cross_entropy(torch.func.functional_call(student, weights, (u,)), drawn)
    gradient = torch.autograd.grad(loss, list(weights.values()))
    moved = {name: w - lr * g for (name, w), g in zip(weights.items(), gradient, strict=True)}
    return F.cross_entropy(torch.func.functional_call(student, moved, (x,)), y).detach()


def enumerated(teacher, student, u, x, y, lr):
    """The gradient of the mean of that loss over all labels that the teacher could draw."""
    log_p = teacher(u).log_softmax(1)
    mean = 0.0
    for drawn in itertools.product(range(log_p.shape[1]), repeat=len(u)):
        drawn = torch.tensor(drawn)
        p = log_p.gather(1, drawn[:, None]).sum().exp()
        mean = mean + p * new_loss(student, u, drawn, x, y, lr)
    return torch.autograd.grad(mean, list(teacher.parameters()))


def first_step(seed, teacher, student, u, x, y, *, feedback, lr, student_lr):
    """Return what the first step of the method adds to the teacher's weights beside that of the labels, by −1/lr."""
    moved, learned = copy.deepcopy(teacher), copy.deepcopy(student)
    options = {"optimizer": SGD, "seed": seed, "progress": False, "batch_size": len(x)}
    meta_pseudo_labels(moved, learned, x, y, u, epochs=1, lr=lr, student_lr=student_lr, feedback=feedback, **options)
    labels = torch.autograd.grad(F.cross_entropy(teacher(x), y), list(teacher.parameters()))
    steps = zip(moved.parameters(), teacher.parameters(), labels, strict=True)
    return [((old - new) / lr - g).detach() for new, old, g in steps], learned


@pytest.mark.parametrize(("classes", "points"), [(2, 1), (3, 1), (2, 2)])
def test_the_teachers_gradient_is_the_enumerated_one(classes, points):
    """Runs of the method itself, one for each label it can draw, weighted by the teacher's probability of it."""
    x, y, u = data(unlabelled=points)
    teacher, student = net(1, classes), net(2, classes)
    log_p = teacher(u).log_softmax(1).detach()
    options = {"feedback": 1.0, "lr": 1e-3, "student_lr": 2.0}
    after = {}  # what was drawn shows in the student, which took one step on it
    for drawn in itertools.product(range(classes), repeat=points):
        after[drawn] = copy.deepcopy(student)
        student_gain(after[drawn], SGD(after[drawn].parameters(), lr=2.0), u, torch.tensor(drawn), x, y)
    found, seed = {}, 0
    while len(found) < len(after) and seed < 200:
        step, learned = first_step(seed, teacher, student, u, x, y, **options)
        found |= {drawn: step for drawn, model in after.items() if equal(model, learned)}
        seed += 1
    weight = {d: float(log_p.gather(1, torch.tensor(d)[:, None]).sum().exp()) for d in found}
    assert sum(weight.values()) == pytest.approx(1, abs=1e-12)  # every label was drawn
    want = enumerated(teacher, student, u, x, y, 2.0)
    for i, gradient in enumerate(want):
        mean = sum(weight[d] * found[d][i] for d in found)
        # A batch's cross-entropy is a mean, not a sum; weights moved by 1e-3 of a gradient lose three digits.
        torch.testing.assert_close(points * mean, gradient, atol=1e-11, rtol=1e-9)
    largest = max(float(g.abs().max()) for g in want)
    assert largest > 1e-4  # so a wrong sign would show


def test_a_step_that_helps_makes_its_label_likelier_and_the_public_sign_less_likely():
    x, y, u = data()
    teacher, student = net(1), net(2)
    for seed in range(8):
        moved = {}
        for feedback in (1.0, -1.0):
            step, learned = first_step(seed, teacher, student, u, x, y, feedback=feedback, lr=1e-3, student_lr=2.0)
            changed = copy.deepcopy(teacher)
            with torch.no_grad():
                for p, g in zip(changed.parameters(), step, strict=True):
                    p -= 0.01 * g
            moved[feedback] = (changed(u).softmax(1) - teacher(u).softmax(1))[0].detach()
        with torch.no_grad():
            gain = float(F.cross_entropy(student(x), y) - F.cross_entropy(learned(x), y))
            drawn = int((learned(u).softmax(1) - student(u).softmax(1)).argmax())  # the step made it likelier
        assert gain * float(moved[1.0][drawn]) > 0 > gain * float(moved[-1.0][drawn])


def test_with_soft_labels_the_public_term_has_no_gradient():
    z = torch.randn(5, 3, requires_grad=True, generator=torch.Generator().manual_seed(0))
    soft = z.softmax(1).detach()
    value = F.cross_entropy(z, soft)
    torch.testing.assert_close(value, -(soft * soft.log()).sum(1).mean())  # an entropy
    (gradient,) = torch.autograd.grad(value, z)
    assert gradient.abs().max() < 1e-7


def test_the_average_leaves_the_mean_gradient_and_lowers_its_variance():
    x, y, u = data()
    teacher, student = net(1), net(2)
    q = teacher(u).softmax(1)[0].detach()
    gains = []
    for drawn in range(2):
        moved = copy.deepcopy(student)
        gains.append(student_gain(moved, SGD(moved.parameters(), lr=2.0), u, torch.tensor([drawn]), x, y))
    scores = torch.stack([q - F.one_hot(torch.tensor(c), 2) for c in range(2)])  # of the cross-entropy by the logits
    variance = {}
    mean = sum(float(q[c]) * gains[c] for c in range(2))
    for m in (0.0, mean, 3.0):
        each = torch.stack([(gains[c] - m) * scores[c] for c in range(2)])
        want = sum(q[c] * gains[c] * scores[c] for c in range(2))
        torch.testing.assert_close((q[:, None] * each).sum(0), want)
        variance[m] = float((q * (each - want).square().sum(1)).sum())
    assert variance[mean] < min(variance[0.0], variance[3.0])


def test_the_history_and_the_average_by_hand():
    x, y, u = data(labelled=6, unlabelled=20)
    options = {"epochs": 3, "lr": 0.1, "batch_size": 8, "progress": False}
    history = meta_pseudo_labels(net(1), net(2), x, y, u, decay=0.5, **options)
    assert history.gain.shape == history.average.shape == (9,) and len(history.loss) == 3
    m = 0.0
    for gain, average in zip(history.gain.tolist(), history.average.tolist(), strict=True):
        assert average == pytest.approx(m, abs=1e-15)
        m = 0.5 * m + 0.5 * gain
    still = meta_pseudo_labels(net(1), net(2), x, y, u, decay=1.0, **options)
    assert not still.average.any() and still.gain[0] == history.gain[0]


def test_the_weights_are_those_of_the_literal_loop(monkeypatch):
    """What is drawn is watched; all else of the algorithm is written out, with gradient descent for both networks."""
    x, y, u = data(labelled=6, unlabelled=12)
    seen, own = [], student_gain

    def watch(student, optimizer, batch, drawn, inputs, labels):
        seen.append((batch, drawn, inputs, labels))
        return own(student, optimizer, batch, drawn, inputs, labels)

    monkeypatch.setattr(sys.modules["mlcomp.train.meta_pseudo_labels"], "student_gain", watch)
    nets = net(1), net(2)
    options = {"epochs": 2, "lr": 0.3, "student_lr": 0.5, "batch_size": 4, "optimizer": SGD, "progress": False}
    meta_pseudo_labels(*nets, x, y, u, feedback=5.0, decay=0.7, **options)
    teacher, student = net(1), net(2)
    share, m = learning_rate_share(6), 0.0
    for step, (batch, drawn, inputs, labels) in enumerate(seen):
        old = F.cross_entropy(student(inputs), labels).item()
        descend(student, F.cross_entropy(student(batch), drawn), 0.5 * share(step))
        gain = old - F.cross_entropy(student(inputs), labels).item()
        loss = F.cross_entropy(teacher(inputs), labels)
        descend(teacher, loss + 5.0 * (gain - m) * F.cross_entropy(teacher(batch), drawn), 0.3 * share(step))
        m = 0.7 * m + 0.3 * gain
    assert len(seen) == 6
    for model, wanted in zip(nets, (teacher, student), strict=True):
        for p, q in zip(model.parameters(), wanted.parameters(), strict=True):
            torch.testing.assert_close(p, q, atol=1e-12, rtol=1e-10)


def descend(model, loss, lr):
    gradient = torch.autograd.grad(loss, list(model.parameters()))
    with torch.no_grad():
        for p, g in zip(model.parameters(), gradient, strict=True):
            p -= lr * g


def test_without_feedback_the_teacher_learns_from_labels_alone():
    """The same as the shared loop on the labelled batches, whatever the unlabelled samples are."""
    x, y, u = data(labelled=6, unlabelled=16)
    teacher = net(1)
    options = {"epochs": 2, "lr": 0.1, "batch_size": 4, "seed": 3, "progress": False}
    meta_pseudo_labels(teacher, net(2), x, y, u, feedback=0.0, **options)
    want, batches = net(1), random_batches(6, 4, seed=3)

    def labels_only(z, _):
        chosen = next(batches)
        return F.cross_entropy(want(x[chosen]), y[chosen]) + 0 * z.sum()

    train(want, u, torch.zeros(16), loss=labels_only, **options)
    assert equal(teacher, want)


def test_the_student_learns_what_the_teacher_says():
    g = torch.Generator().manual_seed(0)
    u = torch.randn(128, 2, generator=g, dtype=torch.float64)
    x, y = u[:40], (u[:40, 0] > 0).long()
    teacher, student = net(1), net(2)
    meta_pseudo_labels(teacher, student, x, y, u, epochs=15, lr=0.1, progress=False)
    with torch.no_grad():
        right = [float((m(u).argmax(1) == (u[:, 0] > 0)).double().mean()) for m in (teacher, student)]
    assert min(right) > 0.9


def test_the_same_call_gives_the_same_weights_and_keeps_modes_and_the_global_state():
    x, y, u = data(labelled=5, unlabelled=12)
    nets = [(net(1).eval(), net(2).train()) for _ in range(3)]
    before = torch.get_rng_state()
    for pair, seed in zip(nets, (0, 0, 1), strict=True):
        meta_pseudo_labels(*pair, x, y, u, epochs=2, lr=0.1, batch_size=5, seed=seed, progress=False)
    assert torch.equal(before, torch.get_rng_state())
    (a, b), (c, d), (e, _) = nets
    assert equal(a, c) and equal(b, d) and not equal(a, e)
    assert not a.training and b.training


def test_the_student_sees_what_the_teacher_sees():
    x, y, u = data(labelled=4, unlabelled=6)
    seen = {"teacher": [], "student": []}
    nets = {"teacher": net(1), "student": net(2)}
    for name, model in nets.items():
        model.register_forward_pre_hook(lambda module, args, name=name: seen[name].append(args[0].clone()))

    def augment(batch, generator):
        return batch + torch.randn(batch.shape, generator=generator, dtype=batch.dtype)

    meta_pseudo_labels(*nets.values(), x, y, u, epochs=1, lr=0.1, augment=augment, progress=False)
    batch = next(b for b in seen["teacher"] if len(b) == 6)
    assert any(torch.equal(batch, b) for b in seen["student"] if len(b) == 6)
    assert not torch.equal(batch.sort(0).values, u.sort(0).values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student": None}, "share parameters"),
        ({"student": net(2, classes=3)}, "the same classes"),
        ({"labels": torch.tensor([0, 1, 2, 1])}, "labels must lie in 0 … 1"),
        ({"labels": torch.tensor([0, 1])}, "labels must be"),
        ({"unlabelled": torch.zeros(3, 2)}, "alike but for their number"),
        ({"feedback": float("nan")}, "feedback must lie"),
        ({"feedback": float("inf")}, "feedback must lie"),
        ({"decay": 1.5}, "decay must lie"),
        ({"lr": 0.0}, "lr must be"),
        ({"student_lr": -1.0}, "student_lr must be"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"loss": F.cross_entropy}, "loss cannot be given"),
        ({"checkpoint": "x", "before_step": print}, "before_step, checkpoint cannot be given"),
    ],
)
def test_bad_input_is_refused_before_any_step(change, message, as_user):
    x, y, u = data(unlabelled=4)
    call = {"teacher": net(1), "student": net(2), "inputs": x, "labels": y, "unlabelled": u, "epochs": 1, "lr": 0.1}
    call |= change
    call["student"] = call["student"] or call["teacher"]
    before = copy.deepcopy(call["teacher"])
    with pytest.raises(ValueError, match=message):
        partial(meta_pseudo_labels, progress=False)(**call)
    assert equal(before, call["teacher"])
