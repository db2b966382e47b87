import math

import pytest
import torch
from torch.nn import functional as F

from mlcomp.distill import born_again, ensemble_log_probabilities, soft_target_loss
from mlcomp.distill.born_again import confidence_weighted_loss, permute_others
from mlcomp.train import train
from tests.distill.nets import OPTIONS, data, equal, student


def drawn(*shape, seed=0):
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_first_learns_from_labels_and_each_other_from_the_one_before():
    x, y = data()
    first, second, third = born_again(student, x, y, generations=2, temperature=2.0, seed=3, **OPTIONS)
    net = student(3)
    train(net, x, y, seed=3, **OPTIONS)
    assert equal(first.model, net)
    for number, (older, younger) in enumerate(((first, second), (second, third)), 4):
        with torch.no_grad():
            taught = older.model.eval()(x)
        net = student(number)
        train(net, x, taught, seed=number, loss=lambda s, t: soft_target_loss(s, t, temperature=2.0), **OPTIONS)
        for p, q in zip(younger.model.parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(p, q)  # the teacher's logits were computed in other batches


def test_a_shorter_run_is_the_beginning_of_a_longer_one():
    x, y = data()
    for teaching in ("soft", "permuted", "confidence"):
        short, long = (born_again(student, x, y, generations=n, teaching=teaching, **OPTIONS) for n in (1, 2))
        assert len(short) == 2 and len(long) == 3
        assert all(equal(a.model, b.model) for a, b in zip(short, long, strict=False))


def test_the_treatments_differ():
    x, y = data()
    last = [
        born_again(student, x, y, generations=1, teaching=t, **OPTIONS)[1] for t in ("soft", "permuted", "confidence")
    ]
    assert not any(equal(a.model, b.model) for i, a in enumerate(last) for b in last[:i])


def test_confidence_weights_are_those_written_out():
    s, t, y = drawn(4, 3), drawn(4, 3, seed=1), torch.tensor([0, 2, 1, 1])
    top = [float(row.softmax(0).max()) for row in t]
    each = [-float(s[i].log_softmax(0)[c]) for i, c in enumerate(y)]
    want = sum(w * c for w, c in zip(top, each, strict=True)) / sum(top)
    assert float(confidence_weighted_loss(s, t, y)) == pytest.approx(want, rel=1e-12)
    even = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0]]  # as sure of each
    torch.testing.assert_close(confidence_weighted_loss(s, even, y), F.cross_entropy(s, y))


def test_permuted_logits_keep_the_largest_and_the_set():
    z = drawn(200, 5)
    got = permute_others(z)
    assert torch.equal(got.argmax(1), z.argmax(1)) and torch.equal(got.amax(1), z.amax(1))
    assert torch.equal(got.sort(1).values, z.sort(1).values)
    # Each of the 4! orders of the others is as likely, so one in four stays in its place.
    stays = (got == z).sum(1).double() - 1
    assert abs(float(stays.mean()) - 1) < 0.25  # 1 expected of 4, standard error 0.07
    assert torch.equal(permute_others(z[:, :1]), z[:, :1])


def test_the_mean_of_probabilities():
    a, b = drawn(3, 4), drawn(3, 4, seed=1)
    got = ensemble_log_probabilities([a, b])
    torch.testing.assert_close(got.exp(), (a.softmax(1) + b.softmax(1)) / 2)
    torch.testing.assert_close(ensemble_log_probabilities([a]), a.log_softmax(1))
    sure = torch.tensor([[1e4, 0.0]])
    torch.testing.assert_close(ensemble_log_probabilities([sure, sure.flip(1)]), torch.full((1, 2), -math.log(2)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"generations": 0}, "generations"),
        ({"teaching": "hard"}, "teaching must be one of"),
        ({"temperature": -1.0}, "temperature"),
        ({"alpha": 2.0}, "alpha"),
        ({"loss": F.cross_entropy}, "loss cannot be given"),
        ({"checkpoint": "x"}, "checkpoint cannot be given"),
    ],
)
def test_bad_input_is_refused(change, message):
    x, y = data()
    with pytest.raises(ValueError, match=message):
        born_again(student, x, y, **{"generations": 1, **OPTIONS, **change})
    for bad in ([], [torch.zeros(2, 3), torch.zeros(2, 4)], [torch.zeros(2, 0)]):
        with pytest.raises(ValueError, match="logits"):
            ensemble_log_probabilities(bad)
