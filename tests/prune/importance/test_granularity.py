import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.checks import removals
from mlcomp.models import convnet
from mlcomp.prune import group_magnitude, magnitude
from mlcomp.prune.importance.granularity import GRANULARITIES, group_dims


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def groups(weight, granularity):
    """The groups of a convolution's weight as lists of indices, one loop for each word of the definition."""
    out, inp, height, width = weight.shape
    o, i, h, w = range(out), range(inp), range(height), range(width)
    if granularity == "element":
        return [[(a, b, c, d)] for a in o for b in i for c in h for d in w]
    if granularity == "vector":
        return [[(a, b, c, d) for d in w] for a in o for b in i for c in h]
    if granularity == "kernel":
        return [[(a, b, c, d) for c in h for d in w] for a in o for b in i]
    if granularity == "filter":
        return [[(a, b, c, d) for b in i for c in h for d in w] for a in o]
    return [[(a, b, c, d) for a in o for c in h for d in w] for b in i]


def literal(weight, granularity, sparsity):
    found = groups(weight, granularity)
    energy = [sum(float(weight[place]) ** 2 for place in group) for group in found]
    pruned = weight.clone()
    for index in sorted(range(len(found)), key=lambda k: energy[k])[: int(sparsity * len(found) + 0.5)]:
        for place in found[index]:
            pruned[place] = 0
    return pruned


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("shape", [(4, 6, 3, 3), (3, 2, 1, 5), (2, 1, 2, 2)])
def test_it_is_the_literal_loop(shape, sparsity, granularity):
    weight = drawn(*shape)
    before = weight.clone()
    pruned = group_magnitude(weight, granularity=granularity, sparsity=sparsity)
    assert torch.equal(pruned, literal(weight, granularity, sparsity)) and torch.equal(weight, before)


@pytest.mark.parametrize("granularity", ["vector", "kernel", "filter", "channel"])
def test_no_other_choice_of_as_many_groups_loses_less(granularity):
    weight = drawn(4, 4, 2, 2)[: 4 if granularity != "vector" else 1]
    weight = weight[:, :1] if granularity == "kernel" else weight
    found = groups(weight, granularity)
    count = len(found) // 2
    losses = []
    for choice in itertools.combinations(found, count):
        losses.append(sum(float(weight[place]) ** 2 for group in choice for place in group))
    pruned = group_magnitude(weight, granularity=granularity, sparsity=0.5)
    # Sums of at most 32 squares in another order.
    assert float((weight - pruned).double().square().sum()) == pytest.approx(min(losses), rel=1e-6)


def test_a_matrix_and_other_ranks():
    weight = drawn(6, 10)
    for granularity in ("element", "vector", "kernel"):
        assert torch.equal(
            group_magnitude(weight, granularity=granularity, sparsity=0.4), magnitude(weight, sparsity=0.4)
        )
    rows = group_magnitude(weight, granularity="filter", sparsity=0.5)
    assert (rows == 0).all(1).sum() == 3 and ((rows == 0).any(1) == (rows == 0).all(1)).all()
    columns = group_magnitude(weight, granularity="channel", sparsity=0.5)
    assert torch.equal(columns, group_magnitude(weight.T, granularity="filter", sparsity=0.5).T)
    # In one dimension a row of taps is the kernel; in three, a kernel is a box.
    line, box = drawn(4, 3, 5), drawn(2, 3, 2, 2, 4)
    assert torch.equal(*(group_magnitude(line, granularity=g, sparsity=0.5) for g in ("vector", "kernel")))
    kernels = group_magnitude(box, granularity="kernel", sparsity=0.5).flatten(2)
    assert (kernels == 0).all(-1).sum() == 3
    assert group_dims("vector", 5) == (4,)


@given(st.sampled_from(GRANULARITIES), st.floats(0, 1), st.integers(0, 2**31))
def test_whole_groups_go_in_the_asked_number_and_the_rest_stays(granularity, sparsity, seed):
    weight = torch.randn(4, 6, 2, 3, generator=torch.Generator().manual_seed(seed))
    pruned = group_magnitude(weight, granularity=granularity, sparsity=sparsity)
    found = groups(weight, granularity)
    zeros = [sum(float(pruned[place]) == 0 for place in group) for group in found]
    assert set(zeros) <= {0, len(found[0])}
    assert sum(map(bool, zeros)) == removals(sparsity, len(found))
    kept = pruned != 0
    assert torch.equal(pruned[kept], weight[kept])


def test_the_courses_network_loses_more_energy_with_coarser_groups():
    """A real convolution 64×64×3×3: the figures were found by another program, too, which cut 57 of 64 at 90 %."""
    weight = convnet().block2.conv2.conv.weight.detach().double()

    def lost(granularity, sparsity):
        pruned = group_magnitude(weight, granularity=granularity, sparsity=sparsity)
        return round(float((weight - pruned).square().sum() / weight.square().sum()), 3)

    assert {g: [lost(g, s) for s in (0.5, 0.75, 57 / 64)] for g in ("filter", "channel")} == {
        "filter": [0.419, 0.685, 0.851],
        "channel": [0.424, 0.678, 0.840],
    }
    assert {g: [lost(g, s) for s in (0.5, 0.75, 0.9)] for g in ("element", "vector", "kernel")} == {
        "element": [0.066, 0.262, 0.539],
        "vector": [0.174, 0.415, 0.666],
        "kernel": [0.274, 0.534, 0.758],
    }


def test_ties_go_by_the_lowest_index_and_dtypes_stay():
    weight = torch.ones(4, 2, 3, 3, dtype=torch.bfloat16)
    pruned = group_magnitude(weight, granularity="filter", sparsity=0.5)
    assert pruned.dtype == torch.bfloat16
    assert (pruned.flatten(1) == 0).all(1).tolist() == [True, True, False, False]
    # Squares that float16 and float32 could not hold.
    for value, dtype in ((3e4, torch.float16), (1e30, torch.float32), (1e-30, torch.float32)):
        weight = torch.tensor([[1.0, 2.0], [2.0, 2.0]], dtype=dtype) * value
        assert group_magnitude(weight, granularity="filter", sparsity=0.5)[0].tolist() == [0, 0]


def test_bad_input(as_user):
    weight = drawn(4, 4, 3, 3)
    with pytest.raises(ValueError, match="granularity must be one of element, vector"):
        group_magnitude(weight, granularity="row", sparsity=0.5)
    with pytest.raises(ValueError, match="sparsity"):
        group_magnitude(weight, granularity="filter", sparsity=1.5)
    for bad in (weight[0, 0, 0], weight[:0]):
        with pytest.raises(ValueError, match="weight must be a non-empty"):
            group_magnitude(bad, granularity="filter", sparsity=0.5)
    with pytest.raises(ValueError, match="NaN or infinite"):
        group_magnitude(weight / 0, granularity="filter", sparsity=0.5)
    with pytest.raises(TypeError, match="floating point"):
        group_magnitude(weight.long(), granularity="filter", sparsity=0.5)
