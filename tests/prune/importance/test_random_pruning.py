import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.checks import removals
from mlcomp.prune import random_pruning

WEIGHTS = {"a": torch.full((3, 4), 2.0), "b": torch.full((5,), -1.0)}


@given(st.floats(0, 1), st.integers(0, 2**31))
def test_exact_count_and_the_rest_is_unchanged(sparsity, seed):
    pruned = random_pruning(WEIGHTS, sparsity=sparsity, seed=seed)
    assert sum(int((p == 0).sum()) for p in pruned.values()) == removals(sparsity, 17)
    assert set(pruned["a"].unique().tolist()) <= {0, 2} and set(pruned["b"].unique().tolist()) <= {0, -1}


def test_every_weight_is_equally_likely():
    """2000 masks that remove 5 of 17: each count is binomial, mean 588, σ = 20.4; five σ are 102."""
    count = sum(
        torch.cat([(p == 0).flatten() for p in random_pruning(WEIGHTS, sparsity=5 / 17, seed=s).values()]).int()
        for s in range(2000)
    )
    assert ((count - 2000 * 5 / 17).abs() < 102).all()


def test_same_seed_same_mask_another_seed_another_and_global_state_kept():
    state = torch.get_rng_state()
    a, b, c = (random_pruning(list(WEIGHTS.values()), sparsity=0.5, seed=s) for s in (0, 0, 1))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(a, c, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_bad_input(as_user):
    with pytest.raises(ValueError, match="empty"):
        random_pruning([], sparsity=0.5)
    with pytest.raises(ValueError, match="sparsity is the share"):
        random_pruning(WEIGHTS, sparsity=float("nan"))
    with pytest.raises(TypeError, match="floating point"):
        random_pruning([torch.ones(2).int()], sparsity=0.5)
