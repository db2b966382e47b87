import itertools

import pytest
import torch
from sklearn.cluster import KMeans as ScikitKMeans

from mlcomp.quant.kmeans import kmeans, kmeans_assign


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


def test_in_one_dimension_it_approaches_lloyd_max():
    x = points(20000, 1)
    # Max 1960, table I: 0.1175 for four levels and a unit Gaussian; 20 000 samples scatter by 1 %.
    assert fit(x, 4, tolerance=1e-9).distortion == pytest.approx(0.1175, rel=0.03)


def test_few_distinct_points_leave_no_error():
    x = points(3, 2).repeat(5, 1)
    assert fit(x, 3).distortion == pytest.approx(0, abs=1e-12)
    assert fit(x, 9).distortion == pytest.approx(0, abs=1e-12)
    assert fit(torch.zeros(4, 2), 2).distortion == 0


def test_bad_input(as_user):
    with pytest.raises(ValueError, match="from 1 to the 5 points"):
        fit(points(5, 2), 6)
    with pytest.raises(ValueError, match=r"\(entries, 2\)"):
        kmeans_assign(points(5, 2), points(3, 4))
    with pytest.raises(ValueError, match="NaN"):
        kmeans_assign(points(5, 2) * float("nan"), points(3, 2))
