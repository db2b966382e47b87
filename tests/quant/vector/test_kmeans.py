import itertools

import pytest
import torch
from sklearn.cluster import KMeans as ScikitKMeans

from mlcomp.quant.vector.kmeans import CHUNK, kmeans, kmeans_assign


def points(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def fit(x, entries, **options):
    return kmeans(x, entries, generator=torch.Generator().manual_seed(0), **options)


def test_assignment_is_the_nearest_entry():
    x, codebook = points(301, 5), points(17, 5, seed=1)
    assert torch.equal(kmeans_assign(x, codebook).long(), torch.cdist(x.double(), codebook.double()).argmin(1))
    assert kmeans_assign(torch.zeros(2, 3), torch.ones(4, 3)).tolist() == [0, 0]  # ties: the lowest


def test_result_is_a_fixed_point():
    x = points(500, 3)
    result = fit(x, 8, tolerance=0.0)
    assert torch.equal(result.index, kmeans_assign(x, result.codebook))
    for k in range(8):
        assert torch.allclose(result.codebook[k], x[result.index == k].mean(0), atol=1e-5)
    assert result.distortion == pytest.approx(float((x - result.decode()).square().mean()), rel=1e-5)


def test_distortion_never_rises():
    x = points(400, 2)
    course = [fit(x, 16, max_steps=steps, tolerance=0.0).distortion for steps in range(12)]
    assert all(b <= a * (1 + 1e-6) for a, b in itertools.pairwise(course))


def test_as_good_as_scikit_learn():
    x = points(1000, 4)
    best = min(kmeans(x, 20, generator=torch.Generator().manual_seed(s)).distortion for s in range(5))
    theirs = ScikitKMeans(20, n_init=5, random_state=0).fit(x.numpy()).inertia_ / x.numel()
    # Both end in local minima; the best of five differ by about 1 %.
    assert best <= 1.03 * theirs


@pytest.mark.parametrize("steps", [1, 5, 60])
def test_from_the_same_centres_it_is_scikit_learns(steps):
    x = points(3000, 4).double()
    start = x[:12].clone()
    ours = kmeans(x, 12, start=start, max_steps=steps, tolerance=0.0)
    theirs = ScikitKMeans(12, init=start.numpy(), n_init=1, max_iter=steps, tol=0).fit(x.numpy())
    assert torch.equal(start, x[:12])
    # scikit-learn counts an iteration the same way, and assigns once more at the end, as we do.
    assert ours.distortion == pytest.approx(theirs.inertia_ / x.numel(), rel=1e-10)
    assert torch.allclose(ours.codebook, torch.from_numpy(theirs.cluster_centers_), atol=1e-10)
    assert ours.index.tolist() == theirs.labels_.tolist()


def test_tiny_problem_against_all_partitions():
    x = points(7, 2, seed=4)
    best = min(
        sum(
            float((group - group.mean(0)).square().sum())
            for k in range(3)
            if len(group := x[torch.tensor([p == k for p in part])])
        )
        for part in itertools.product(range(3), repeat=7)
    )
    found = [kmeans(x, 3, generator=torch.Generator().manual_seed(s)).distortion * 14 for s in range(20)]
    assert min(found) == pytest.approx(best, rel=1e-5) and all(f >= best * (1 - 1e-5) for f in found)


def test_seeding_finds_small_clusters():
    # Two clusters of three points far from one of 2000: seeds drawn uniformly would all land in the large one, and
    # Lloyd's iterations would never leave it.
    sizes, centres = torch.tensor([2000, 3, 3]), torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0]])
    x = centres.repeat_interleave(sizes, dim=0) + 0.01 * points(2006, 2)
    for seed in range(5):
        found = kmeans(x, 3, generator=torch.Generator().manual_seed(seed))
        assert found.distortion < 2e-4  # the noise has 1e-4


def test_points_in_several_chunks(monkeypatch):
    x, codebook = points(1000, 3), points(16, 3, seed=1)
    whole = kmeans_assign(x, codebook)
    monkeypatch.setitem(CHUNK, "cpu", 16 * 7)
    assert torch.equal(kmeans_assign(x, codebook), whole)


def test_in_one_dimension_it_approaches_lloyd_max():
    x = points(20000, 1)
    # Max 1960, table I: 0.1175 for four levels and a unit Gaussian; 20 000 samples scatter by 1 %.
    assert fit(x, 4, tolerance=1e-9).distortion == pytest.approx(0.1175, rel=0.03)


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_an_entry_without_points_moves_to_the_point_with_the_largest_error(lost):
    x = points(60, 2).double()
    start = torch.cat([x[:2], torch.full((lost, 2), 1e3, dtype=torch.float64)])  # the last are nobody's nearest
    step = kmeans(x, 2 + lost, start=start, max_steps=1)
    distance = torch.cdist(x, x[:2]).square()
    worst = distance.amin(1).argsort(descending=True)[:lost]
    assert step.codebook[2:].tolist() == x[worst].tolist()
    own = distance.argmin(1)  # the others move to the means of their points, those that the lost ones take included
    for k in range(2):
        torch.testing.assert_close(step.codebook[k], x[own == k].mean(0))


def test_few_distinct_points_leave_no_error():
    x = points(3, 2).repeat(5, 1)
    assert fit(x, 3).distortion == pytest.approx(0, abs=1e-12)
    assert fit(x, 9).distortion == pytest.approx(0, abs=1e-12)
    assert fit(torch.zeros(4, 2), 2).distortion == 0


def test_bad_input(as_user):
    with pytest.raises(ValueError, match="entries must be a whole number from 1 to 5"):
        fit(points(5, 2), 6)
    with pytest.raises(ValueError, match=r"codebook must be \(3, 2\) like the points' dimension, got \(3, 4\)"):
        kmeans_assign(points(5, 2), points(3, 4))
    for options in ({}, {"generator": torch.Generator(), "start": points(3, 2)}):
        with pytest.raises(ValueError, match="exactly one of generator and start"):
            kmeans(points(5, 2), 3, **options)
    for start in (points(2, 2), points(3, 4), points(3, 1)):
        with pytest.raises(ValueError, match="start must be"):
            kmeans(points(5, 2), 3, start=start)
    with pytest.raises(ValueError, match="start holds 6 NaN"):
        kmeans(points(5, 2), 3, start=points(3, 2) * float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        kmeans_assign(points(5, 2) * float("nan"), points(3, 2))
