import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mlcomp.train import confident_labels, network_fit, train
from tests.examples import examples

P = torch.tensor([[0.875, 0.125], [0.375, 0.625], [0.5625, 0.4375], [0.125, 0.875], [0.25, 0.75]])


def test_the_rules_by_hand():
    assert confident_labels(P, threshold=0.625).tolist() == [0, -1, -1, 1, 1]  # strictly above
    assert confident_labels(P, threshold=0.875).tolist() == [-1] * 5
    assert confident_labels(P, best=2).tolist() == [0, -1, -1, 1, -1]
    assert confident_labels(P, best=3).tolist() == [0, -1, -1, 1, 1]
    assert confident_labels(P, best_per_class=1).tolist() == [0, -1, -1, 1, -1]
    assert confident_labels(P, best_per_class=2).tolist() == [0, -1, 0, 1, 1]
    assert confident_labels(P, best_per_class=9).tolist() == [0, 1, 0, 1, 1]
    assert confident_labels(P[:0], best=2).tolist() == []


def test_of_equal_ones_the_earlier_are_taken():
    even = torch.full((4, 2), 0.5)
    assert confident_labels(even, best=2).tolist() == [0, 0, -1, -1]
    assert confident_labels(even, best_per_class=3).tolist() == [0, 0, 0, -1]


@given(st.integers(0, 99), st.integers(1, 12), st.booleans())
@examples(20)
def test_no_more_confident_sample_is_left(seed, count, per_class):
    p = torch.randn(10, 3, generator=torch.Generator().manual_seed(seed)).softmax(1)
    got = confident_labels(p, **{"best_per_class" if per_class else "best": count})
    sure, best = p.max(1)
    assert torch.equal(got[got >= 0], best[got >= 0])
    for group in [best == c for c in range(3)] if per_class else [best >= 0]:
        taken = group & (got >= 0)
        assert int(taken.sum()) == min(count, int(group.sum()))
        if taken.any() and (group & ~taken).any():
            assert sure[taken].min() >= sure[group & ~taken].max()


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({}, "exactly one of threshold, best, best_per_class"),
        ({"best": 1, "threshold": 0.5}, "got threshold, best"),
        ({"threshold": 1.5}, "threshold must lie"),
        ({"best": 0}, "best must be a whole number"),
        ({"best_per_class": 2.0}, "best_per_class must be a whole number"),
    ],
)
def test_bad_rules_are_refused(rule, message, as_user):
    with pytest.raises(ValueError, match=message):
        confident_labels(P, **rule)


@pytest.mark.parametrize("p", [P.log(), 2 * P, P[0], P[:, :0], P - 1.5])
def test_what_is_no_probability_is_refused(p, as_user):
    with pytest.raises(ValueError, match="probabilities"):
        confident_labels(p, best=1)


def linear(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(3, 2)


def test_a_network_is_trained_anew_in_each_fit():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 3, generator=g), torch.arange(20) % 2
    options = {"epochs": 2, "lr": 0.1, "batch_size": 8}
    fit = network_fit(linear, seed=4, **options)
    first, again = fit(x, y), fit(x, y)
    net = linear(4)
    train(net, x, y, seed=4, progress=False, **options)
    assert torch.equal(first(x), again(x)) and torch.equal(first(x), net(x).detach().softmax(1))
    assert first(x[:0]).shape == (0, 2)
    with pytest.raises(ValueError, match="checkpoint"):
        network_fit(linear, checkpoint="x", **options)
