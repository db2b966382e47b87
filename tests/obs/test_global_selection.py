import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.obs import select_counts
from tests.examples import examples


def brute_force(losses, total):
    cost = torch.nn.functional.pad(losses.cumsum(1), (1, 0)).tolist()
    choices = itertools.product(range(losses.shape[1] + 1), repeat=len(losses))
    return min(sum(c[k] for c, k in zip(cost, ks, strict=True)) for ks in choices if sum(ks) == total)


def heap(losses, total):
    """The paper's global step: the row whose next loss is smallest goes on."""
    taken = [0] * len(losses)
    for _ in range(total):
        open_rows = [r for r in range(len(losses)) if taken[r] < losses.shape[1]]
        best = min(open_rows, key=lambda r: float(losses[r, taken[r]]))
        taken[best] += 1
    return sum(float(losses[r, :k].sum()) for r, k in enumerate(taken))


@pytest.mark.slow
@examples(150)
@given(
    increments=st.lists(st.lists(st.integers(0, 9), min_size=5, max_size=5), min_size=1, max_size=4),
    data=st.data(),
)
def test_is_optimal_with_ties_and_dips(increments, data):
    losses = torch.tensor(increments, dtype=torch.float64)
    total = data.draw(st.integers(0, losses.numel()))
    found = select_counts(losses, total)
    assert int(found.counts.sum()) == total
    assert found.loss == brute_force(losses, total)
    assert found.bound <= found.loss
    assert found.bound == found.loss  # small: always proven


@examples(50)
@given(seed=st.integers(0, 10**6), total=st.integers(0, 200))
def test_never_worse_than_the_heap(seed, total):
    g = torch.Generator().manual_seed(seed)
    losses = torch.rand(10, 20, generator=g, dtype=torch.float64) ** 3
    found = select_counts(losses, total)
    assert found.bound <= found.loss <= heap(losses, total) + 1e-9


def test_heap_is_not_optimal_when_a_loss_dips():
    # One step of 3 and then free ones: worth it, but its first step looks dear.
    losses = torch.tensor([[3.0, 0.0, 0.0], [2.0, 2.0, 2.0]], dtype=torch.float64)
    assert heap(losses, 3) == 6
    found = select_counts(losses, 3)
    assert found.counts.tolist() == [3, 0] and found.loss == 3


def test_convex_traces_are_sorting():
    g = torch.Generator().manual_seed(0)
    losses = torch.rand(50, 40, generator=g, dtype=torch.float64).sort(1).values
    for total in (0, 1, 700, 2000):
        expected = float(losses.flatten().sort().values[:total].sum())
        assert select_counts(losses, total).loss == pytest.approx(expected, rel=1e-12)


def test_all_equal_and_all_zero():
    # Every share of the rows is optimal; the search must not be drowned in ties.
    for value in (0.0, 1.0):
        found = select_counts(torch.full((300, 200), value, dtype=torch.float64), 30_001)
        assert int(found.counts.sum()) == 30_001
        assert found.loss == pytest.approx(30_001 * value, rel=1e-12)


def test_bound_is_honest_when_the_search_is_given_up(monkeypatch):
    monkeypatch.setattr("mlcomp.obs.global_selection.SEARCH_LIMIT", 0)
    g = torch.Generator().manual_seed(1)
    for seed in range(20):
        losses = torch.rand(3, 6, generator=g, dtype=torch.float64) ** 4
        best = brute_force(losses, seed % 18)
        found = select_counts(losses, seed % 18)
        assert found.bound <= best + 1e-12 <= found.loss + 2e-12


@pytest.mark.parametrize("total", [-1, 7, 2.0, True])
def test_bad_totals(as_user, total):
    with pytest.raises(ValueError, match="total"):
        select_counts(torch.ones(2, 3), total)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_bad_losses(as_user, value):
    with pytest.raises(ValueError, match="losses"):
        select_counts(torch.full((2, 3), value), 2)
