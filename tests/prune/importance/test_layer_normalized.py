import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.checks import removals
from mlcomp.models import mlp
from mlcomp.prune import global_magnitude, layer_normalized, layer_weights

SHAPES = ((2, 3), (4,), (1, 2, 2, 2))


def random_weights(seed=0):
    g = torch.Generator().manual_seed(seed)
    return {str(i): torch.randn(shape, generator=g) for i, shape in enumerate(SHAPES)}


def literal(weights, sparsity):
    """The lecture's formula in Python floats: score each weight, sort, remove."""
    scored = []
    for name, weight in weights.items():
        norm = sum(float(w) ** 2 for w in weight.flatten()) ** 0.5
        scored += [(abs(float(w)) / norm, name, i) for i, w in enumerate(weight.flatten())]
    scored.sort(key=lambda entry: entry[0])
    return {(name, i) for _, name, i in scored[: int(sparsity * len(scored) + 0.5)]}


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_removes_what_the_formula_ranks_lowest(sparsity, seed):
    weights = random_weights(seed)
    weights["1"] *= 100
    pruned = layer_normalized(weights, sparsity=sparsity)
    removed = {(n, i) for n, w in pruned.items() for i, v in enumerate(w.flatten().tolist()) if v == 0}
    assert removed == literal(weights, sparsity)
    for name, weight in weights.items():
        kept = pruned[name] != 0
        assert torch.equal(pruned[name][kept], weight[kept])


def test_by_hand():
    """Norms 5 and 13: scores 0.6, 0.8 and 5/13, 12/13. Plain magnitude would take the 3 and the 4."""
    pruned = layer_normalized([torch.tensor([3.0, -4.0]), torch.tensor([5.0, 12.0])], sparsity=0.25)
    assert [p.tolist() for p in pruned] == [[3, -4], [0, 12]]
    pruned = layer_normalized([torch.tensor([3.0, -4.0]), torch.tensor([5.0, 12.0])], sparsity=0.5)
    assert [p.tolist() for p in pruned] == [[0, -4], [0, 12]]


@given(st.floats(0, 1), st.lists(st.integers(-40, 40), min_size=3, max_size=3), st.integers(0, 2**31))
def test_exact_count_and_scale_of_a_layer_is_irrelevant(sparsity, exponents, seed):
    weights = random_weights(seed)
    pruned = layer_normalized(weights, sparsity=sparsity)
    assert sum(int((p == 0).sum()) for p in pruned.values()) == removals(sparsity, 18)
    scaled = {n: w * 2.0**e for (n, w), e in zip(weights.items(), exponents, strict=True)}
    again = layer_normalized(scaled, sparsity=sparsity)
    assert all(torch.equal(again[n] == 0, pruned[n] == 0) for n in weights)


def test_equal_norms_and_dtypes_are_global_magnitude():
    weights = {n: w / w.double().norm() for n, w in random_weights().items()}
    for sparsity in (0.25, 0.6):
        expected = global_magnitude(weights, sparsity=sparsity)
        found = layer_normalized(weights, sparsity=sparsity)
        assert all(torch.equal(found[n], expected[n]) for n in weights)


def test_a_large_layer_is_pruned_harder_whatever_its_scale():
    g = torch.Generator().manual_seed(0)
    large, small = torch.randn(100, 100, generator=g), torch.randn(10, 10, generator=g)
    for scale in (1e-3, 1e3):
        a, b = layer_normalized([large * scale, small], sparsity=0.8)
        assert 0.79 < (a == 0).float().mean() < 0.82 and (b == 0).float().mean() < 0.2


def test_tiny_and_huge_weights_do_not_under_or_overflow():
    weights = random_weights()
    expected = layer_normalized(weights, sparsity=0.5)
    moved = {"0": weights["0"] * 1e-30, "1": weights["1"].double() * 1e200, "2": weights["2"] * 1e30}
    found = layer_normalized(moved, sparsity=0.5)
    assert all(torch.equal(found[n] == 0, expected[n] == 0) and found[n].dtype == moved[n].dtype for n in weights)


def test_a_layer_of_zeros_goes_first_and_ties_go_by_index():
    pruned = layer_normalized([torch.ones(4), torch.zeros(2)], sparsity=0.5)
    assert [p.tolist() for p in pruned] == [[0, 1, 1, 1], [0, 0]]


def test_arguments_are_not_changed():
    weights = layer_weights(mlp())
    before = {n: w.clone() for n, w in weights.items()}
    layer_normalized(weights, sparsity=0.9)
    assert all(torch.equal(weights[n], before[n]) for n in weights)


def test_bad_input(as_user):
    with pytest.raises(ValueError, match="empty"):
        layer_normalized({}, sparsity=0.5)
    with pytest.raises(ValueError, match="sparsity is the share"):
        layer_normalized([torch.ones(2)], sparsity=1.5)
    with pytest.raises(ValueError, match=r"weights\['a'\] holds 1 NaN"):
        layer_normalized({"a": torch.tensor([1.0, float("nan")])}, sparsity=0.5)
    with pytest.raises(TypeError, match="floating point"):
        layer_normalized([torch.ones(2, dtype=torch.int64)], sparsity=0.5)
