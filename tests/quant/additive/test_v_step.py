import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcomp.formats import AdditiveCodes
from mlcomp.quant.additive.additive_student import AdditiveStudent
from mlcomp.quant.additive.v_step import curvatures, nearest_codes, v_step
from tests.quant.additive.additive_case import network, one_layer


def points(count=20, books=2, entries=4, dim=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(entries, (count, 1, books), generator=g, dtype=torch.uint8)
    books = torch.randn(books, entries, dim, generator=g, dtype=torch.float64)
    start = AdditiveCodes(codes, books, torch.rand(count, generator=g, dtype=torch.float64) + 0.2)
    root = torch.randn(count, dim, dim, generator=g, dtype=torch.float64)
    return torch.randn(count, dim, generator=g, dtype=torch.float64), start, root @ root.mT


def distance(target, start, codes, metric):
    delta = target - AdditiveCodes(codes[:, None], start.codebooks, start.scale).dequantize()
    return torch.einsum("pd,pde,pe->p", delta, metric.expand(len(target), -1, -1), delta)


@pytest.mark.parametrize("books", [1, 2, 3])
@pytest.mark.parametrize("euclidean", [True, False])
def test_nearest_codes_are_the_best_of_all_with_a_wide_beam(books, euclidean):
    target, start, metric = points(books=books)
    metric = torch.eye(3, dtype=torch.float64)[None] if euclidean else metric
    found = nearest_codes(target, start, metric=None if euclidean else metric, beam=4 ** (books - 1))
    best = (
        torch.stack(
            [
                distance(target, start, torch.tensor(choice, dtype=torch.uint8).expand(len(target), -1), metric)
                for choice in itertools.product(range(4), repeat=books)
            ]
        )
        .min(0)
        .values
    )
    torch.testing.assert_close(distance(target, start, found, metric), best)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), books=st.integers(1, 3), beam=st.integers(1, 5))
def test_nearest_codes_never_go_farther(seed, books, beam):
    target, start, metric = points(books=books, entries=8, seed=seed)
    found = nearest_codes(target, start, metric=metric, beam=beam)
    before, after = (distance(target, start, codes, metric) for codes in (start.codes[:, 0], found))
    assert (after <= before * (1 + 1e-9)).all()


def test_a_point_of_scale_zero_keeps_its_codes():
    target, start, metric = points()
    start = AdditiveCodes(start.codes, start.codebooks, start.scale * 0)
    assert torch.equal(nearest_codes(target, start, metric=metric), start.codes[:, 0])


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


def test_on_one_layer_with_its_own_curvature_one_group_goes_to_its_best_entry():
    """The loss is quadratic, and the metric is its curvature: the step is exact within a group."""
    layer, root, start, hessian = one_layer()
    tuned = student(layer, root, {"": start})
    share = 1 / (48 * 8)
    (before,) = [w.quantized() for w in tuned.weights.values()]
    v_step(tuned, curvatures(tuned, "inputs"), torch.arange(32), share, 4)
    (after,) = [w.quantized() for w in tuned.weights.values()]
    (row,), (group,), _ = (before.codes != after.codes).nonzero(as_tuple=True)
    weight, h = layer.weight.detach().double(), hessian.double()

    def loss(code):
        codes = before.codes.clone()
        codes[row, group, 0] = code
        delta = weight - AdditiveCodes(codes, before.codebooks, before.scale).dequantize().double()
        return float(((delta @ h) * delta).sum())

    # 1 % damping of the metric, and steps of 1, 2 or 4 times 1/L: near the best entry, if not the best.
    losses = sorted(loss(code) for code in range(32))
    assert loss(int(after.codes[row, group, 0])) <= losses[1]
    assert loss(int(after.codes[row, group, 0])) < loss(int(before.codes[row, group, 0]))


def test_a_large_subspace_takes_short_steps_and_changes_nothing():
    """Why τ is small: with all groups at once, 1/L is so short that rounding undoes the step."""
    block, x, _, layers = network(code_bits=3)
    changed = {}
    for share in (1.0, 4 / 192):
        tuned = student(block, x, layers)
        before = [w.codes.clone() for w in tuned.weights.values()]
        v_step(tuned, curvatures(tuned, "identity"), torch.arange(len(x)), share, 4, reaches=(1.0,), tries=1)
        changed[share] = sum(
            int((a != w.codes).any(2).sum()) for a, w in zip(before, tuned.weights.values(), strict=True)
        )
    assert changed[1.0] <= changed[4 / 192]


def test_at_a_perfect_fit_nothing_moves():
    layer, root, start, _ = one_layer()
    with torch.no_grad():
        layer.weight.copy_(start.dequantize())
    tuned = student(layer, root, {"": start})
    v_step(tuned, curvatures(tuned, "inputs"), torch.arange(32), 0.1, 4)
    assert torch.equal(tuned.weights["0"].codes, start.codes)
