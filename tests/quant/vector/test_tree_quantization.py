import itertools

import pytest
import torch

from mlcomp.quant import fit_tree, kmeans_assign, tree_quantization, vector_quantization

POINTS = torch.randn(600, 3, generator=torch.Generator().manual_seed(0))


def grow(entries, branching, points=POINTS):
    return fit_tree(points, entries, branching=branching, generator=torch.Generator().manual_seed(3))


def error(tree, points=POINTS):
    return float((points - tree.entries[tree.encode(points).long()]).square().sum())


def test_depth_one_is_one_codebook():
    weight = POINTS.reshape(60, 30)
    options = {"dim": 3, "entries": 16}
    tree = tree_quantization(weight, branching=16, generator=torch.Generator().manual_seed(3), **options)
    alone = vector_quantization(weight, generator=torch.Generator().manual_seed(3), **options)
    assert torch.equal(tree.codes, alone.codes) and torch.equal(tree.codebooks, alone.codebooks)


@pytest.mark.parametrize(
    ("entries", "branching", "distances"), [(256, 2, 16), (256, 4, 16), (256, 16, 32), (27, 3, 9)]
)
def test_search_cost(entries, branching, distances):
    tree = grow(entries, branching)
    assert tree.distances == distances
    assert tree.entries.shape == (entries, 3)


@pytest.mark.parametrize("branching", [2, 4])
def test_walk_is_the_literal_one(branching):
    tree = grow(16, branching)
    for point, leaf in zip(POINTS[:80], tree.encode(POINTS[:80]).tolist(), strict=True):
        node, computed = 0, 0
        for level in tree.levels:
            distance = [float((point - branch).square().sum()) for branch in level[node]]
            computed += len(distance)
            node = node * branching + min(range(branching), key=distance.__getitem__)
        assert node == leaf and computed == tree.distances


def test_each_level_is_a_k_means_of_its_nodes_points():
    tree = grow(16, 4)
    home = kmeans_assign(POINTS, tree.levels[0][0])
    for node in range(4):
        members = POINTS[home == node]
        leaf = kmeans_assign(members, tree.levels[1][node])
        for b in range(4):
            assert torch.allclose(members[leaf == b].mean(0), tree.levels[1][node, b], atol=1e-4)
    assert torch.equal(tree.encode(POINTS)[home == 2] // 4, torch.full((int((home == 2).sum()),), 2).int())


def test_deeper_fits_no_worse_and_a_full_search_better():
    errors = [error(grow(entries, 2)) for entries in (2, 4, 8, 16, 64, 256)]
    assert all(b <= a * (1 + 1e-6) for a, b in itertools.pairwise(errors))
    walked = grow(64, 2)
    full = (POINTS - walked.entries[kmeans_assign(POINTS, walked.entries).long()]).square().sum()
    assert float(full) < error(walked)  # the walk does not always reach the nearest leaf
    assert error(grow(64, 64)) < error(walked)


def test_nodes_with_few_points():
    points = torch.tensor([[0.0, 0], [0, 0], [0, 0], [9, 9], [0, 0.1], [0, 0]])
    for entries, branching in ((4, 2), (4, 4)):
        tree = grow(entries, branching, points)
        assert torch.isfinite(tree.entries).all() and error(tree, points) < 0.02
    assert error(grow(4, 2, torch.zeros(5, 2)), torch.zeros(5, 2)) == 0
    assert grow(1, 1, points).entries.shape == (1, 2)


def test_a_node_with_too_few_points_repeats_its_last_centre():
    # Three groups far apart, of 5, 2 and 2 points, and three branches: the small nodes have two centres each.
    corners = torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0]]).repeat_interleave(torch.tensor([5, 2, 2]), 0)
    x = corners + torch.randn(9, 2, generator=torch.Generator().manual_seed(0))
    tree = fit_tree(x, 9, branching=3, generator=torch.Generator().manual_seed(0))
    small = [node for node in tree.levels[1] if len(node.unique(dim=0)) == 2]
    assert len(small) == 2
    for node in small:
        assert torch.equal(node[2], node[1]) and not torch.equal(node[0], node[1])
    assert len(tree.encode(x).unique()) == 7  # 3 + 2 + 2: nobody goes to a repeat


def test_bad_input(as_user):
    for entries, branching in ((6, 2), (2, 4), (2, 1), (8, 3)):
        with pytest.raises(ValueError, match="power of branching"):
            grow(entries, branching)
    with pytest.raises(ValueError, match="branching must"):
        grow(4, 0)
    with pytest.raises(ValueError, match="at most the 600 points"):
        grow(1024, 2)
    with pytest.raises(ValueError, match="points must be a non-empty matrix"):
        grow(2, 2, torch.ones(5))
    for points in (torch.ones(5, 4), torch.ones(3), torch.ones(0, 3)):
        with pytest.raises(ValueError, match=r"\(N, 3\)"):
            grow(4, 2).encode(points)
    with pytest.raises(ValueError, match="NaN or infinite"):
        grow(4, 2).encode(POINTS * float("nan"))
