import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from mlcomp.metrics import changed_predictions, ink, ranked_groups, slant, subgroup_accuracy, worst_by_chance
from tests.examples import examples


def test_two_groups_by_hand():
    found = subgroup_accuracy(torch.tensor([True, False, True, True]), torch.tensor([0, 0, 2, 2]))
    assert found.counts.tolist() == [2, 0, 2]
    assert found.accuracy.tolist() == [0.5, 0, 1]
    assert found.worst == 0.5 and found.gap == 0.5  # the empty group is none


@examples(30)
@given(st.integers(0, 10**6), st.integers(1, 50))
def test_against_a_loop(seed, n):
    generator = torch.Generator().manual_seed(seed)
    correct, groups = torch.rand(n, generator=generator) < 0.7, torch.randint(5, (n,), generator=generator)
    found = subgroup_accuracy(correct, groups)
    members = [[bool(c) for c, g in zip(correct, groups, strict=True) if g == k] for k in range(5)]
    shares = [sum(m) / len(m) for m in members if m]
    assert found.worst == pytest.approx(min(shares)) and found.gap == pytest.approx(max(shares) - min(shares))
    assert float((found.counts * found.accuracy).sum()) == pytest.approx(float(correct.sum()))


def test_worst_by_chance_against_all_permutations():
    correct, groups = torch.tensor([True, True, True, False, False, True]), torch.tensor([0, 0, 0, 1, 1, 1])
    exact = []
    for order in itertools.permutations(range(6)):
        right = correct[list(order)].double()
        exact.append(min(float(right[:3].mean()), float(right[3:].mean())))
    got = worst_by_chance(correct, groups, draws=2000)
    # One draw has a standard deviation of 0.16: four of the mean's.
    assert float(got.mean()) == pytest.approx(sum(exact) / len(exact), abs=4 * 0.17 / math.sqrt(2000))
    torch.testing.assert_close(got, worst_by_chance(correct, groups, draws=2000), rtol=0, atol=0)
    assert not torch.equal(got, worst_by_chance(correct, groups, draws=2000, seed=1))


def test_changes_by_hand():
    labels = torch.tensor([0, 0, 1, 1, 2, 0, 2, 2])
    before, after = (
        F.one_hot(torch.tensor(x), 3).float() for x in ([0, 0, 0, 1, 0, 0, 2, 2], [0, 1, 1, 1, 1, 2, 2, 2])
    )
    found = changed_predictions(before, after, labels)
    # The fifth is wrong in another way than before.
    assert (found.changed, found.lost, found.gained) == (4 / 8, 2 / 8, 1 / 8)
    same = changed_predictions(before, before, labels)
    assert (same.changed, same.lost, same.gained) == (0, 0, 0)


def test_thirds_of_equal_size_in_order():
    values = torch.tensor([5.0, 1.0, 3.0, 2.0, 4.0, 0.0, 6.0])
    groups = ranked_groups(values)
    assert torch.bincount(groups).tolist() == [3, 2, 2]
    assert values[groups == 0].max() < values[groups == 1].min() < values[groups == 2].min()
    assert ranked_groups(torch.ones(4), parts=2).tolist() == [0, 0, 1, 1]


def test_slant_of_a_sheared_line_is_the_shear():
    images = torch.zeros(4, 1, 21, 41)
    for number, shear in enumerate((0.0, 1.0, -0.5, 2.0)):
        for up in range(-10, 11, 2):
            images[number, 0, 10 - up, round(20 + shear * up)] = 1
    torch.testing.assert_close(slant(images), torch.tensor([0.0, 1.0, -0.5, 2.0]).double())
    torch.testing.assert_close(slant(0.1 * images), slant(images))
    assert slant(torch.zeros(1, 1, 3, 3)).item() == 0 and slant(torch.ones(1, 1, 1, 3)).item() == 0


def test_ink_is_the_mean():
    images = torch.rand(3, 1, 4, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ink(images), images.double().mean((1, 2, 3)))


def test_bad_input(as_user):
    right, groups, z = torch.tensor([True, False]), torch.tensor([0, 1]), torch.zeros(2, 3)
    for call, message in (
        (lambda: subgroup_accuracy(right, groups[:1]), "groups must be"),
        (lambda: subgroup_accuracy(right.float(), groups), "correct must be boolean"),
        (lambda: subgroup_accuracy(right[:0], groups[:0]), "correct must be boolean"),
        (lambda: subgroup_accuracy(right, groups - 1), "groups must lie in"),
        (lambda: worst_by_chance(right, groups, draws=0), "draws must be"),
        (lambda: changed_predictions(z, z[:, :2], groups), "logits must be"),
        (lambda: changed_predictions(z, z, groups + 2), "labels must lie in"),
        (lambda: ranked_groups(torch.ones(2), parts=3), "parts must be"),
        (lambda: ink(-torch.ones(1, 1, 2, 2)), "no negative pixels"),
        (lambda: slant(torch.ones(1, 3, 2, 2)), "images must be"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
