import itertools

import pytest
import torch
from torch import nn

from mlcomp.formats import AdditiveCodes
from mlcomp.quant import residual_kmeans
from mlcomp.quant.additive.additive_student import AdditiveStudent
from mlcomp.quant.additive.v_step import VSteps, curvatures, v_step
from mlcomp.train import random_batches
from tests.quant.additive.additive_case import network, one_layer


def student(block, inputs, layers, **options):
    defaults = {"targets": None, "loss": None, "batch_size": 500, "train_rest": True, "seed": 0}
    return AdditiveStudent(block, inputs, layers, **{**defaults, **options})


@pytest.mark.parametrize("metric", ["inputs", "identity"])
def test_the_loss_falls_and_only_chosen_groups_change(metric):
    block, x, _, layers = network()
    tuned = student(block, x, layers)
    every = torch.arange(len(x))
    share, losses = 4 / 192, [tuned.mean_loss()]
    for _ in range(6):
        before = [w.codes.clone() for w in tuned.weights.values()]
        asked = max(1, round(share * 192))
        share = v_step(tuned, curvatures(tuned, metric), every, share, 4)
        changed = sum(int((a != w.codes).any(2).sum()) for a, w in zip(before, tuned.weights.values(), strict=True))
        assert changed <= asked
        losses.append(tuned.mean_loss())
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]


class Scripted(AdditiveStudent):
    """16 groups of one weight 1, their gradients and all losses given; entries 1 and 0, no curvature.

    The step is then as long as the weights in the subspace; a weight that it carries below one half goes to 0.
    """

    def __init__(self, gradients, losses):
        codes = AdditiveCodes(
            torch.zeros(16, 1, 1, dtype=torch.uint8), torch.tensor([[[1.0], [0.0]]]), torch.ones(16)
        )
        super().__init__(
            nn.Linear(1, 16, bias=False), torch.ones(3, 1), {"": codes}, targets=None, loss=None, batch_size=3,
            train_rest=False, seed=0,
        )  # fmt: skip
        self.given, self.losses = torch.tensor(gradients)[:, None], list(losses)

    def mean_loss(self, chosen=None):
        return self.losses.pop(0)

    def gradients(self, matrices, chosen=None):
        return [self.given]

    def moved(self):
        return self.weights[""].codes.flatten().nonzero().flatten().tolist()


def steep_and_flat(steep):
    """Gradients of so many groups that a step carries to 0, the others' so small that they stay; none equal."""
    return [(1.0 if i < steep else 0.01) * (1 - 1e-3 * i) for i in range(16)]


@pytest.mark.parametrize(
    ("share", "steep", "losses", "moved", "after"),
    [
        (8 / 16, 5, (9, 8), 5, 1.0),  # more than half of the eight changed: twice as many
        (8 / 16, 4, (9, 8), 4, 0.25),  # half of them is not more than half
        (8 / 16, 8, (9, 9, 8), 2, 0.25),  # the second try has a quarter: both of two changed
        (8 / 16, 1, (9, 9.5, 8), 1, 0.0625),  # one of these two did not
        (8 / 16, 8, (9, 9, 10, 9), 0, 8 / 16),  # no try of three lowered the loss
        (16 / 16, 16, (9, 8), 16, 1.0),  # never more than all
        (0.0001, 3, (9, 8), 1, 0.0002),  # at least one group
        (0.1, 16, (9, 8), 2, 0.2),  # 1.6 groups are two
    ],
)
def test_the_share_grows_and_shrinks_as_documented(share, steep, losses, moved, after):
    student = Scripted(steep_and_flat(steep), losses)
    found = v_step(student, curvatures(student, "identity"), torch.arange(3), share, 1, reaches=(1.0,), tries=3)
    assert found == pytest.approx(after, rel=1e-12)  # doubled, halved and quartered: exact but for 0.1 and 0.0001
    assert student.moved() == list(range(moved))  # the steepest first
    assert student.losses == []  # so many tries, and no more


def test_of_several_reaches_the_lowest_loss_stays():
    # Of the eight steepest groups two, four or six go to 0: 1/L is the root of 8 over the sum of their squares.
    gradients = [1.0, 0.99, 0.5, 0.49, 0.3, 0.29, 0.1, 0.09] + [0.01] * 8
    unit = (8 / sum(g * g for g in gradients[:8])) ** 0.5
    for best, reach in enumerate((0.3, 0.8, 1.2)):
        losses = [9.0, 8.0, 8.0, 8.0]
        losses[1 + best] = 7.0
        student = Scripted(gradients, losses)
        v_step(student, curvatures(student, "identity"), torch.arange(3), 0.5, 1, reaches=(0.3, 0.8, 1.2), tries=1)
        assert student.moved() == [i for i in range(8) if 1 - reach * unit * gradients[i] < 0.5]
        assert len(student.moved()) == 2 * (best + 1)


def test_a_stationary_point_is_not_tried():
    student = Scripted([0.0] * 16, (9,))
    assert v_step(student, curvatures(student, "identity"), torch.arange(3), 0.5, 1) == 0.5
    assert student.losses == [] and student.moved() == []


def literal_v_step(weight, x, start, share, metric):
    """One V step on ‖(W − Ŵ)X‖²/‖WX‖² in float64, one codebook; also the share to try next.

    The gradient and the curvature are those of a quadratic, so that 1/L is the exact minimum along the move.
    """
    h, norm = 2 * x @ x.T, float((weight @ x).square().sum())
    codes, books, scale = start.codes[:, :, 0].tolist(), start.codebooks[0].double(), start.scale.double()
    out, groups, dim = len(codes), len(codes[0]), books.shape[1]
    places = [(n, j) for n in range(out) for j in range(groups)]

    def decode(codes):
        return torch.stack([torch.cat([scale[n] * books[k] for k in codes[n]]) for n in range(out)])

    def loss(codes):
        return float(((weight - decode(codes)) @ x).square().sum()) / norm

    def part(matrix, n, j):
        return matrix[n, j * dim : (j + 1) * dim]

    unit = torch.eye(dim, dtype=torch.float64)
    a = [unit] * groups
    if metric == "inputs":
        a = [h[j * dim :, j * dim :][:dim, :dim] / h.diagonal().mean() + 0.01 * unit for j in range(groups)]
    y = decode(codes)
    g = (y - weight) @ h / norm
    move = {(n, j): torch.linalg.solve(a[j], part(g, n, j)) for n, j in places}
    gain = {p: float(part(g, *p) @ move[p]) for p in places}

    def nearest(n, j, step):
        away = part(y, n, j) - step * move[n, j] - scale[n] * books
        return int(((away @ a[j]) * away).sum(1).argmin())

    def with_codes(new):
        return [[new.get((n, j), codes[n][j]) for j in range(groups)] for n in range(out)]

    def model(n, j, k, step):  # g δ + δ A δ / (2 step)
        delta = scale[n] * books[k] - part(y, n, j)
        return float(part(g, n, j) @ delta + delta @ a[j] @ delta / (2 * step))

    for _ in range(5):
        count = max(1, round(share * len(places)))
        inside = sorted(places, key=gain.get, reverse=True)[:count]
        direction = torch.zeros_like(weight)
        for n, j in inside:
            direction[n, j * dim : (j + 1) * dim] = move[n, j]
        longest = (sum(float(part(y, *p).square().sum()) for p in inside) / float(direction.square().sum())) ** 0.5
        exact = float((g * direction).sum()) * norm / float(((direction @ h) * direction).sum())
        step = min(longest, exact)
        tried = [with_codes({p: nearest(*p, r * step) for p in inside}) for r in (1, 2, 4)]
        for r in (1, 2, 4) if metric == "inputs" else ():
            falls = {p: model(*p, nearest(*p, r * step), r * step) for p in places}
            promise = [p for p in sorted(places, key=falls.get)[:count] if falls[p] < 0]
            tried.append(with_codes({p: nearest(*p, r * step) for p in promise}))
        best = min(tried, key=loss)
        if loss(best) < loss(codes):
            changed = sum(best[n][j] != codes[n][j] for n, j in places)
            return best, min(1.0, 2 * share) if 2 * changed > count else share / 2
        share /= 4
    return codes, None


@pytest.mark.parametrize("metric", ["inputs", "identity"])
@pytest.mark.parametrize("share", [1 / 384, 0.02, 0.3, 1.0])
def test_a_step_on_one_layer_is_the_literal_one(metric, share):
    layer, root, start, _ = one_layer()
    tuned = student(layer.double(), root.double(), {"": start})
    want, after = literal_v_step(layer.weight.detach(), root.double().T, start, share, metric)
    found = v_step(tuned, curvatures(tuned, metric), torch.arange(32), share, 4)
    assert tuned.weights[""].codes[:, :, 0].tolist() == want
    assert want != start.codes[:, :, 0].tolist() and found == after


def test_at_a_perfect_fit_nothing_moves():
    layer, root, start, _ = one_layer()
    with torch.no_grad():
        layer.weight.copy_(start.dequantize())
    tuned = student(layer, root, {"": start})
    v_step(tuned, curvatures(tuned, "inputs"), torch.arange(32), 0.1, 4)
    assert torch.equal(tuned.weights[""].codes, start.codes)


class WithADeadPart(nn.Module):
    """A layer, and another that only ever sees zeros."""

    def __init__(self, layer):
        super().__init__()
        self.live, self.dead = layer, nn.Linear(6, 48, bias=False)

    def forward(self, x):
        return self.live(x) + self.dead(x.new_zeros(len(x), 6))


def test_a_layer_that_is_never_active_does_not_keep_the_others_from_moving():
    layer, root, start, _ = one_layer()
    both = WithADeadPart(layer)
    dead = residual_kmeans(both.dead.weight.detach(), dim=3, books=1, code_bits=3)
    alone, beside = student(layer, root, {"": start}), student(both, root, {"live": start, "dead": dead})
    v_step(alone, curvatures(alone, "inputs"), torch.arange(32), 20 / 384, 4)
    v_step(beside, curvatures(beside, "inputs"), torch.arange(32), 20 / (384 + 96), 4)
    assert torch.equal(beside.weights["dead"].codes, dead.codes)
    assert torch.equal(beside.weights["live"].codes, alone.weights[""].codes)
    assert not torch.equal(alone.weights[""].codes, start.codes)


@pytest.mark.parametrize("batch_size", [20, None])
def test_the_steps_of_a_round_hand_on_the_share_and_draw_their_own_inputs(batch_size):
    layer, root, start, _ = one_layer()
    ours, want = (student(layer, root, {"": start}, seed=5) for _ in range(2))
    steps = VSteps(ours, steps=3, batch_size=batch_size, share=0.02, metric="identity", beam=1)
    metrics, share = curvatures(want, "identity"), 0.02
    for chosen in itertools.islice(random_batches(32, batch_size or 32, seed=5), 6):
        share = v_step(want, metrics, chosen, share, 1)
    steps()
    steps()
    assert steps.share == share and share != 0.02
    assert torch.equal(ours.weights[""].codes, want.weights[""].codes)
