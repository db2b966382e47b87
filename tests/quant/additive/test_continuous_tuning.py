import itertools
import math

import pytest
import torch
from torch import nn

from mlcomp.quant import residual_kmeans
from mlcomp.quant.additive.additive_student import AdditiveStudent
from mlcomp.quant.additive.continuous_tuning import AdamSteps, check_rounds, tune_in_rounds
from mlcomp.train import random_batches


class Scripted(AdditiveStudent):
    """A student whose losses are given, and whose state is the number of rounds made."""

    def __init__(self, losses):
        self.losses, self.rounds = losses, 0

    def mean_loss(self):
        return float(self.losses[self.rounds])

    def state(self):
        return self.rounds

    def restore(self, state):
        self.rounds = state


@pytest.mark.parametrize(
    ("losses", "tolerance", "made", "kept"),
    [
        ((5, 4, 3, 2), None, 3, 3),
        ((5, 4, 6, 7), None, 3, 1),  # the best round, not the last
        ((5, 6, 7, 8), None, 3, 0),  # none was better than the start
        ((5, 4, 4, 3), None, 3, 3),  # a round that gained nothing ends nothing
        ((8, 4, 3, 0), 0.25, 3, 3),  # a quarter less is not less than a quarter less
        ((8, 4, 3.1, 0), 0.25, 2, 2),
        ((8, 9, 0, 0), 0.0, 1, 0),
        ((8, 8, 4, 0), 0.0, 3, 3),
    ],
)
def test_rounds_end_and_the_best_is_kept(losses, tolerance, made, kept):
    student, order = Scripted(losses), []

    def second():
        student.rounds += 1
        order.append("second")

    parts = [lambda: order.append("first"), second]
    history = tune_in_rounds(student, parts, rounds=3, tolerance=tolerance)
    assert history == list(losses[: made + 1]) and student.rounds == kept
    assert order == ["first", "second"] * made


def test_no_rounds_change_nothing():
    student = Scripted((5,))
    assert tune_in_rounds(student, [lambda: pytest.fail("a round was made")], rounds=0, tolerance=0.0) == [5]


def test_a_round_is_adam_on_the_students_own_batches():
    """Against Adam (Kingma & Ba 2015, Algorithm 1) on a layer decoded by hand; all in float32."""
    g = torch.Generator().manual_seed(0)
    layer = nn.Linear(6, 4).requires_grad_(False)
    layer.weight.copy_(torch.randn(4, 6, generator=g))
    layer.bias.zero_()  # its root mean square is zero: the rate itself
    x, z = torch.randn(10, 6, generator=g), torch.randn(10, 4, generator=g)
    start = residual_kmeans(layer.weight, dim=3, books=2, code_bits=2)
    student = AdditiveStudent(layer, x, {"": start}, targets=z, loss=None, batch_size=4, train_rest=True, seed=3)
    with torch.no_grad():
        AdamSteps(student, steps=5, learning_rate=0.02)()

    values = [start.codebooks.clone(), start.scale.clone(), layer.bias.clone()]
    rates = [0.02 * (float(v.square().mean().sqrt()) or 1.0) for v in values]
    first, second = ([torch.zeros_like(v) for v in values] for _ in range(2))
    for t, chosen in enumerate(itertools.islice(random_batches(10, 4, seed=3), 5), 1):
        leaves = [v.clone().requires_grad_() for v in values]
        books, scale, bias = leaves
        weight = torch.cat([sum(books[c][start.codes[:, j, c].long()] for c in range(2)) for j in range(2)], 1)
        error = x[chosen] @ (scale[:, None] * weight).T + bias - z[chosen]
        gradients = torch.autograd.grad(error.square().sum() / z[chosen].square().sum(), leaves)
        for i, gradient in enumerate(gradients):
            first[i] = 0.9 * first[i] + 0.1 * gradient
            second[i] = 0.999 * second[i] + 0.001 * gradient.square()
            size = (second[i] / (1 - 0.999**t)).sqrt() + 1e-8
            values[i] = values[i] - rates[i] * first[i] / (1 - 0.9**t) / size
    weight = student.weights[""]
    assert torch.equal(weight.codes, start.codes)
    for ours, want in zip((weight.codebooks, weight.scale, student.rest["bias"]), values, strict=True):
        # The same sums in another order, in float32; Adam magnifies the error of small gradients.
        torch.testing.assert_close(ours.detach(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "change", [{"rounds": -1}, {"steps": 0}, {"learning_rate": 0.0}, {"learning_rate": math.nan}, {"tolerance": 1.0}]
)
def test_bad_options(change):
    options = {"rounds": 0, "steps": 1, "learning_rate": 0.1, "tolerance": None}
    check_rounds(**options)
    with pytest.raises(ValueError, match=next(iter(change))):
        check_rounds(**options | change)
