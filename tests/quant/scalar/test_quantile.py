import itertools
from statistics import median

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import laplace, norm

from mlcomp.quant import Density, lloyd_max, nf4_codebook, quantile_codebook

# Dettmers et al. 2023, appendix E: the NF4 data type as printed.
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip


def sample(n, seed):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)) ** 3


@given(st.integers(2, 20), st.integers(20, 200), st.integers(0, 2**31))
def test_every_code_is_used_equally_often(levels, n, seed):
    x = sample(n, seed)
    if len(x.unique()) < n:
        return  # ties, see below
    counts = quantile_codebook(x, levels).encode(x).long().bincount(minlength=levels)
    assert int(counts.max() - counts.min()) <= 1


@pytest.mark.parametrize("levels", [2, 5, 16])
def test_on_a_gaussian_against_scipy(levels):
    book = quantile_codebook("gaussian", levels)
    edges = norm.ppf([i / levels for i in range(levels + 1)])
    assert book.thresholds.tolist() == pytest.approx(edges[1:-1], abs=1e-12)
    centres = [levels * norm.expect(lambda x: x, lb=a, ub=b) for a, b in itertools.pairwise(edges)]
    assert book.levels.tolist() == pytest.approx(centres, abs=1e-7)
    error = sum(
        norm.expect(lambda x, y=y: (x - y) ** 2, lb=a, ub=b)
        for a, b, y in zip(edges[:-1], edges[1:], centres, strict=True)
    )
    assert book.distortion == pytest.approx(error, rel=1e-6)
    medians = quantile_codebook("gaussian", levels, representative="median")
    assert medians.levels.tolist() == pytest.approx(norm.ppf([(i + 0.5) / levels for i in range(levels)]), abs=1e-12)
    assert medians.distortion >= book.distortion >= lloyd_max("gaussian", levels).distortion - 1e-12


@pytest.mark.parametrize("levels, count", [(2, 10), (3, 21), (8, 72), (4, 24), (5, 33), (16, 17)])
def test_median_levels_are_the_medians_of_their_cells(levels, count):
    x = sample(count, seed=levels)
    book = quantile_codebook(x, levels, representative="median")
    code = book.encode(x)
    wanted = [median(x[code == i].double().tolist()) for i in range(levels)]
    assert book.levels.tolist() == pytest.approx(wanted, rel=1e-15)
    dense = quantile_codebook("laplace", levels, representative="median")
    wanted = laplace(scale=0.5**0.5).ppf([(i + 0.5) / levels for i in range(levels)])
    assert dense.levels.tolist() == pytest.approx(wanted, abs=1e-12)


def test_samples_density_and_closed_form_agree():
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    exact = quantile_codebook("gaussian", 8)
    dense = quantile_codebook(Density(lambda x: torch.exp(-x * x / 2), (-9.0, 9.0)), 8)
    assert torch.allclose(dense.levels, exact.levels, atol=1e-5)
    assert torch.allclose(quantile_codebook(x, 8).levels, exact.levels, atol=0.02)  # a quantile scatters by 0.01


def test_ties_leave_bins_empty_but_everything_decodable():
    x = torch.tensor([0.0] * 50 + [1.0, 2.0, 3.0])
    for representative in ("mean", "median"):
        book = quantile_codebook(x, 8, representative=representative)
        assert torch.isfinite(book.levels).all() and (book.levels.diff() >= 0).all()
        assert book.distortion == pytest.approx(float((book.round(x) - x).square().mean()), rel=1e-6)
    assert quantile_codebook(torch.tensor([4.0]), 3).levels.tolist() == [4, 4, 4]


def test_nf4_is_the_published_table():
    book = nf4_codebook()
    # The published code has the offset rounded to seven digits, and its shares in float32: 2e-7 in the levels ...
    assert book.levels.tolist() == pytest.approx(NF4, abs=3e-7)
    shares = {n: torch.linspace(0.9677083, 0.5, n)[:-1].tolist() for n in (9, 8)}
    literal = torch.tensor([*-norm.ppf(shares[8]), 0, *norm.ppf(shares[9])[::-1]], dtype=torch.float32)
    assert torch.equal(literal / literal.max(), torch.tensor(NF4))  # ... and with both, the last bit is the same
    assert float(book.levels[7]) == 0 and book.distortion is None
    assert book.encode(book.levels).tolist() == list(range(16))


def test_bad_input(as_user):
    with pytest.raises(ValueError, match="representative"):
        quantile_codebook("gaussian", 4, representative="mode")
    with pytest.raises(ValueError, match="2 to 256"):
        quantile_codebook("gaussian", 1)
    with pytest.raises(ValueError, match="no sample"):
        quantile_codebook(torch.zeros(0), 4)
    with pytest.raises(TypeError, match="samples, got"):
        quantile_codebook(None, 4)
