import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.prune import erdos_renyi, erdos_renyi_densities

LENET = [(300, 784), (100, 300), (10, 100)]


@pytest.mark.parametrize(
    "density, expected",
    [
        (0.1, [0.07957, 0.23019, 1]),
        (0.05, [0.03848, 0.11133, 0.91851]),
        (0.02, [0.01539, 0.04453, 0.36740]),
    ],
)
def test_densities_of_the_common_perceptron(density, expected):
    """Solved by hand: (n + m)/(n·m) up to one factor, and a layer above 1 is dense."""
    assert erdos_renyi_densities(LENET, density) == pytest.approx(expected, abs=5e-6)


def test_kernels_count_all_four_dimensions():
    # Raw densities: (3+2+3+3)/54 = 11/54 and (4+3+1+1)/12 = 9/12.
    first, second = erdos_renyi_densities([(3, 2, 3, 3), (4, 3, 1, 1)], 0.2)
    assert first / second == pytest.approx((11 / 54) / (9 / 12))
    assert 54 * first + 12 * second == pytest.approx(0.2 * 66)


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=6),
    st.floats(0, 1),
)
def test_whole_network_has_the_density_and_ratios_hold(shapes, density):
    found = erdos_renyi_densities(shapes, density)
    assert all(0 <= d <= 1 + 1e-12 for d in found)
    total = sum(d * math.prod(s) for d, s in zip(found, shapes, strict=True))
    assert total == pytest.approx(density * sum(map(math.prod, shapes)), rel=1e-9, abs=1e-9)
    raw = [d / (sum(s) / math.prod(s)) for d, s in zip(found, shapes, strict=True) if d < 1]
    assert raw == pytest.approx([raw[0]] * len(raw) if raw else [])  # one factor for all that are not dense


def test_masks_have_the_counts_and_are_drawn_evenly():
    weights = {"a": torch.ones(30, 40), "b": torch.ones(5, 30, dtype=torch.float64)}
    pruned = erdos_renyi(weights, sparsity=0.9, seed=3)
    densities = erdos_renyi_densities([(30, 40), (5, 30)], 0.1)
    for (name, weight), d in zip(weights.items(), densities, strict=True):
        kept = int((pruned[name] != 0).sum())
        assert kept == weight.numel() - math.floor((1 - d) * weight.numel() + 0.5)
        assert pruned[name].dtype == weight.dtype
    again = erdos_renyi(weights, sparsity=0.9, seed=3)
    assert all(torch.equal(again[name], pruned[name]) for name in weights)
    hits = sum((erdos_renyi([torch.ones(6, 6)], sparsity=0.5, seed=s)[0] != 0).double() for s in range(400))
    # 36 places, each kept in half of 400 draws: 200 ± 10; five standard deviations.
    assert hits.min() > 150 and hits.max() < 250


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="two or more dimensions"):
        erdos_renyi([torch.ones(4)], sparsity=0.5)
    with pytest.raises(ValueError, match="sparsity"):
        erdos_renyi_densities(LENET, 1.5)
    with pytest.raises(ValueError, match="two or more"):
        erdos_renyi_densities([], 0.5)
