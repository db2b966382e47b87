import copy
import math

import pytest
import torch
from torch import nn

from mlcomp.distill import soft_target_loss, train_student
from mlcomp.metrics import accuracy
from mlcomp.train import train
from tests.distill.nets import OPTIONS, data, equal, student, teacher


def noise(batch, generator):
    return batch + 0.1 * torch.randn(batch.shape, generator=generator)


@pytest.mark.parametrize("augment", [None, noise])
def test_without_the_teacher_it_is_training_on_labels(augment):
    x, y = data()
    net = student()
    want = train(net, x, y, augment=augment, **OPTIONS)
    start = student()
    got = train_student(start, teacher(), x, y, temperature=4.0, alpha=0.0, augment=augment, **OPTIONS)
    assert equal(got.model, net) and got.history.loss == pytest.approx(want.loss)
    assert equal(start, student()) and got.model is not start


@pytest.mark.parametrize("temperature", [2.0, math.inf])
def test_it_is_training_on_the_teachers_logits(temperature):
    """The same loop, given the logits as its labels."""
    x, _ = data()
    with torch.no_grad():
        logits = teacher().eval()(x)
    net = student()
    train(net, x, logits, loss=lambda s, t: soft_target_loss(s, t, temperature=temperature), **OPTIONS)
    got = train_student(student(), teacher(), x, temperature=temperature, **OPTIONS).model
    for p, q in zip(got.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(p, q)  # the teacher's logits were computed in other batches


def test_labels_and_hints_take_part():
    x, y = data()
    common = {"temperature": 2.0, **OPTIONS}
    models = [
        train_student(student(), teacher(), x, **common).model,
        train_student(student(), teacher(), x, y, alpha=0.5, **common).model,
        train_student(student(), teacher(), x, hints={"1": "2"}, **common).model,
        train_student(student(), teacher(), x, hints={"1": "2"}, hint_weight=5.0, **common).model,
    ]
    assert not any(equal(a, b) for i, a in enumerate(models) for b in models[:i])
    none = train_student(student(), teacher(), x, hints={"1": "2"}, hint_weight=0.0, **common).model
    for p, q in zip(none.parameters(), models[0].parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_the_teacher_answers_in_eval_mode_and_is_left_as_it_was():
    x, _ = data()
    noisy, calm = teacher().train(), teacher().eval()
    frozen = noisy[1].eval()
    before = copy.deepcopy(noisy)
    for augment in (None, noise):
        options = {"temperature": 1.0, "augment": augment, "hints": {"1": "2"}, **OPTIONS}
        a, b = (train_student(student(), net, x, **options).model for net in (noisy, calm))
        assert equal(a, b)
    assert equal(noisy, before) and noisy.training and not frozen.training and noisy[3].training
    assert all(p.grad is None for p in noisy.parameters())
    assert not any(m._forward_hooks for m in [*noisy.modules(), *a.modules()])


class Watching(nn.Sequential):
    """Remembers the inputs it was run on."""

    def __init__(self, *layers, seen):
        super().__init__(*layers)
        self.seen = (seen,)  # shared by copies

    def forward(self, x):
        if len(x) > 2:  # the first two inputs show shapes
            self.seen[0].append(x.clone())
        return super().forward(x)

    def __deepcopy__(self, memo):
        return Watching(*(copy.deepcopy(layer) for layer in self), seen=self.seen[0])


def test_the_teacher_sees_what_the_student_sees():
    x, _ = data()
    ours, theirs = [], []
    pupil, master = Watching(*student(), seen=ours), Watching(*teacher(), seen=theirs)
    train_student(pupil, master, x, temperature=1.0, augment=noise, **OPTIONS)
    assert len(ours) == len(theirs) == 9
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    theirs.clear()
    train_student(pupil, master, x, temperature=1.0, **OPTIONS)
    assert torch.equal(torch.cat(theirs), x)  # once


def test_a_student_learns_the_teachers_answers_without_labels():
    x, _ = data(300)
    master = teacher().eval()
    answers = master(x).argmax(1)
    start = student()
    net = train_student(start, master, x, temperature=1.0, epochs=30, lr=1e-2, progress=False).model
    assert accuracy(net, x, answers) > 0.85 > accuracy(start, x, answers) + 0.2


def test_an_interrupted_run_goes_on(tmp_path):
    x, y = data()
    options = {"temperature": 2.0, "alpha": 0.5, "hints": {"1": "2"}, **OPTIONS}
    whole = train_student(student(), teacher(), x, y, **options)
    stopped = False

    def stop(step):
        nonlocal stopped  # what a function assigns is no setting of the run
        if step == 5 and not stopped:
            stopped = True
            raise KeyboardInterrupt

    path = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        train_student(student(), teacher(), x, y, checkpoint=path, after_step=stop, **options)
    resumed = train_student(student(), teacher(), x, y, checkpoint=path, after_step=stop, **options)
    assert equal(resumed.model, whole.model)
    with pytest.raises(ValueError, match="another run"):
        train_student(student(), teacher(seed=6), x, y, checkpoint=path, after_step=stop, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"alpha": 0.5, "labels": None}, "without labels alpha must be 1"),
        ({"alpha": -0.1}, "alpha"),
        ({"hint_weight": -1.0}, "hint_weight"),
        ({"loss": nn.functional.mse_loss}, "loss is taken"),
        ({"hints": {"9": "2"}}, "Sequential has no layer '9'"),
        ({"hints": {"1": "9"}}, "Sequential has no layer '9'"),
        ({"teacher": student(classes=4)}, "logits of the same shape"),
        ({"labels": torch.full((40,), 3)}, "labels must lie in 0 … 2"),
        ({"labels": torch.zeros(40, 2, dtype=torch.long)}, "labels must be"),
        ({"labels": torch.zeros(39, dtype=torch.long)}, "same length"),
        ({"inputs": torch.zeros(0, 8), "labels": None}, "no sample"),
        ({"epochs": 0}, "epochs"),
    ],
)
def test_bad_input_is_refused(change, message):
    x, y = data()
    call = {"student": student(), "teacher": teacher(), "inputs": x, "labels": y, "temperature": 1.0, **OPTIONS}
    with pytest.raises(ValueError, match=message):
        train_student(**{**call, **change})


def test_layers_that_give_no_hint_are_refused():
    class Skips(nn.Sequential):
        def forward(self, x):
            return self[3](self[1](self[0](x)))

    class Tuples(nn.Module):
        def forward(self, x):
            return x, x

    x, _ = data()
    common = {"temperature": 1.0, **OPTIONS}
    with pytest.raises(ValueError, match="not called"):
        train_student(Skips(*student()), teacher(), x, hints={"2": "2"}, **common)
    with pytest.raises(ValueError, match="one tensor"):
        train_student(nn.Sequential(student(), Tuples()), teacher(), x, **common)
