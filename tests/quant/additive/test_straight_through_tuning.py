"""The straight-through rival, step by step against sums and Adam written out in float64."""

import itertools

import pytest
import torch
from torch import nn

from mlcomp.quant import residual_kmeans
from mlcomp.quant.additive.additive_student import AdditiveStudent
from mlcomp.quant.additive.straight_through_tuning import StraightThroughSteps

RATE = 0.05


def problem(books):
    """Return (layer, inputs, codes): rows whose scales differ by up to 5, so that one row's scale is no other's."""
    g = torch.Generator().manual_seed(7)
    layer = nn.Linear(8, 5).requires_grad_(False)
    layer.weight.copy_(torch.randn(5, 8, generator=g) * torch.arange(1.0, 6.0)[:, None])
    layer.bias.copy_(torch.randn(5, generator=g))
    return layer, torch.randn(12, 8, generator=g), residual_kmeans(layer.weight, dim=2, books=books, code_bits=2)


class LiteralAdam:
    """Kingma & Ba 2015, Algorithm 1, for one tensor."""

    def __init__(self, value, rate):
        self.value, self.rate, self.m, self.v, self.t = value, rate, 0, 0, 0

    def step(self, gradient):
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * gradient
        self.v = 0.999 * self.v + 0.001 * gradient**2
        m, v = self.m / (1 - 0.9**self.t), self.v / (1 - 0.999**self.t)
        self.value = self.value - self.rate * m / (v.sqrt() + 1e-8)


def decoded(codes, books, scale):
    return torch.stack(
        [
            s * torch.cat([sum(books[c, k] for c, k in enumerate(group)) for group in row])
            for row, s in zip(codes, scale, strict=True)
        ]
    )


def literal_steps(layer, x, start, steps):
    """Return codes (as lists), codebooks, scales, bias and latent weights after each step on all of x."""
    x, dense = x.double(), layer.weight.double()
    target = x @ dense.T + layer.bias.double()
    first = {"books": start.codebooks, "scale": start.scale, "bias": layer.bias, "latent": layer.weight}
    adam = {k: LiteralAdam(v.double(), RATE * float(v.double().square().mean().sqrt())) for k, v in first.items()}
    codes = start.codes.tolist()
    found = []
    for _ in range(steps):
        books, scale = adam["books"].value, adam["scale"].value
        output = x @ decoded(codes, books, scale).T + adam["bias"].value
        slope = 2 * (output - target) / target.square().sum()  # of ‖z − ẑ‖²/‖z‖² with respect to the output
        by_weight = slope.T @ x  # with respect to the decoded weight: what the latent weight is given
        by_books, by_scale = torch.zeros_like(books), torch.zeros_like(scale)
        for n, row in enumerate(codes):
            for j, group in enumerate(row):
                piece = by_weight[n, 2 * j : 2 * j + 2]
                for c, k in enumerate(group):
                    by_books[c, k] += scale[n] * piece
                    by_scale[n] += books[c, k] @ piece
        for name, gradient in zip(adam, (by_books, by_scale, slope.sum(0), by_weight), strict=True):
            adam[name].step(gradient)
        books, scale, latent = (adam[k].value for k in ("books", "scale", "latent"))
        choices = list(itertools.product(range(4), repeat=len(books)))
        sums = torch.stack([sum(books[c, k] for c, k in enumerate(choice)) for choice in choices])
        codes = [
            [
                list(choices[(latent[n, 2 * j : 2 * j + 2] - scale[n] * sums).square().sum(1).argmin()])
                for j in range(4)
            ]
            for n in range(5)
        ]
        found.append({"codes": codes} | {name: a.value for name, a in adam.items()})
    return found


@pytest.mark.parametrize("books", [1, 2])
def test_every_step_is_the_literal_one(books):
    layer, x, start = problem(books)
    student = AdditiveStudent(layer, x, {"": start}, targets=None, loss=None, batch_size=12, train_rest=True, seed=0)
    ours = StraightThroughSteps(student, steps=1, learning_rate=RATE, beam=16)  # as many as there are sums
    weight, moved = student.weights[""], 0
    before = start.codes
    for want in literal_steps(layer, x, start, 4):
        ours()
        assert weight.codes.tolist() == want["codes"]
        moved += int((weight.codes != before).any(2).sum())
        before = weight.codes.clone()
        # float32 against float64: sums of twelve terms, and Adam, whose first steps magnify the error of a gradient
        # that is small beside the others.
        for now, name in ((weight.codebooks, "books"), (weight.scale, "scale"), (student.rest["bias"], "bias")):
            torch.testing.assert_close(now.detach().double(), want[name], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.latent[0].detach().double(), want["latent"], rtol=1e-4, atol=1e-5)
    assert moved > 3


def test_the_latent_weights_do_not_enter_the_forward_pass():
    layer, x, start = problem(1)
    student = AdditiveStudent(layer, x, {"": start}, targets=None, loss=None, batch_size=12, train_rest=True, seed=0)
    ours = StraightThroughSteps(student, steps=1, learning_rate=RATE, beam=4)
    with torch.no_grad():
        ours.latent[0].mul_(1e6)
    assert torch.equal(ours.matrices()[0], student.decoded()[0])
