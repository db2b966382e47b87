import importlib
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from mlcomp.quant import Density, lloyd_max, quantile_codebook

module = importlib.import_module("mlcomp.quant.scalar.lloyd_max")  # the package exports a function of that name

# Max 1960, table I, as printed: four digits or more.
MAX_GAUSSIAN = {
    2: 0.3634,
    3: 0.1902,
    4: 0.1175,
    5: 0.07994,
    6: 0.05798,
    7: 0.04400,
    8: 0.03454,
    16: 0.009497,
    32: 0.002499,
}
# Jayant and Noll 1984, tables 4.2 and 4.5: signal-to-noise ratio in dB.
SNR_DB = {
    "gaussian": {2: 4.40, 4: 9.30, 8: 14.62, 16: 20.22, 32: 26.01},
    "laplace": {2: 3.01, 4: 7.54, 8: 12.64, 16: 18.13, 32: 23.87},
}
SCIPY = {"gaussian": stats.norm(), "laplace": stats.laplace(scale=math.sqrt(0.5))}


def normal(n, seed=0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def best_error(x, levels):
    """The least mean squared error of any quantizer of these samples: dynamic programming over sorted runs."""
    x = sorted(x.tolist())
    n = len(x)
    total, square = [0.0], [0.0]
    for v in x:
        total.append(total[-1] + v)
        square.append(square[-1] + v * v)

    def run(i, j):
        return square[j] - square[i] - (total[j] - total[i]) ** 2 / (j - i)

    least = [0.0] + [math.inf] * n
    for _ in range(levels):
        least = [0.0] + [min(least[i] + run(i, j) for i in range(j)) for j in range(1, n + 1)]
    return least[n] / n


def test_the_lectures_numbers():
    book = lloyd_max("gaussian", 4)
    assert [round(v, 2) for v in book.thresholds.tolist()] == [-0.98, 0, 0.98]
    assert [round(v, 2) for v in book.levels.tolist()] == [-1.51, -0.45, 0.45, 1.51]
    assert round(book.distortion, 2) == 0.12
    assert round(-10 * math.log10(book.distortion), 2) == 9.30


@pytest.mark.parametrize(("levels", "error"), MAX_GAUSSIAN.items())
def test_table_of_max(levels, error):
    # Max's machine was right to about three digits: 0.002499 is 0.002505 today.
    assert lloyd_max("gaussian", levels).distortion == pytest.approx(error, rel=3e-3)


@pytest.mark.parametrize(("name", "levels"), [(s, n) for s in SNR_DB for n in SNR_DB[s]])
def test_tables_in_decibels(name, levels):
    snr = -10 * math.log10(lloyd_max(name, levels).distortion)
    assert snr == pytest.approx(SNR_DB[name][levels], abs=0.0051)


@pytest.mark.parametrize("levels", [2, 3, 4, 7, 16, 64, 256])
@pytest.mark.parametrize("name", ["gaussian", "laplace"])
def test_both_conditions_hold_by_scipys_quadrature(name, levels):
    book, f = lloyd_max(name, levels), SCIPY[name]
    assert torch.equal(book.thresholds, (book.levels[1:] + book.levels[:-1]) / 2)
    assert torch.equal(book.levels, -book.levels.flip(0))
    edges = [-math.inf, *book.thresholds.tolist(), math.inf]
    error = 0.0
    for (a, b), y in list(zip(itertools.pairwise(edges), book.levels.tolist(), strict=True))[:: max(1, levels // 16)]:
        a, b = max(a, -40), min(b, 40)
        kink = [0.0] if a < 0 < b else None
        mass, first = (
            integrate.quad(lambda x, k=k: x**k * f.pdf(x), a, b, points=kink, epsabs=1e-13, epsrel=1e-11, limit=200)[
                0
            ]
            for k in (0, 1)
        )
        assert first / mass == pytest.approx(y, abs=2e-8)  # a level's error is the root of the error's own
        if levels <= 16:
            error += integrate.quad(lambda x, y=y: (x - y) ** 2 * f.pdf(x), a, b, points=kink, limit=200)[0]
    if levels <= 16:
        assert book.distortion == pytest.approx(error, rel=1e-7)


@pytest.mark.parametrize("levels", [2, 5, 32, 256])
def test_closed_forms_agree_with_quadrature(levels):
    for name, pdf in (
        ("gaussian", lambda x: 7 * torch.exp(-x.square() / 2)),  # any scale
        ("laplace", lambda x: torch.exp(-math.sqrt(2) * x.abs())),
    ):
        end = 12.0 if name == "gaussian" else 24.0
        exact, by_quadrature = lloyd_max(name, levels), lloyd_max(Density(pdf, (-end, end)), levels)
        # Sums over 4096 panels cancel: about 1e-13 of a distortion of 4e-5 at 256 levels.
        assert by_quadrature.distortion == pytest.approx(exact.distortion, rel=1e-8)
        assert torch.allclose(by_quadrature.levels, exact.levels, atol=1e-5)


def test_uniform_density_and_a_gap():
    book = lloyd_max(Density(torch.ones_like, (0.0, 1.0)), 5)
    assert torch.allclose(book.levels, torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64), atol=1e-9)
    assert book.distortion == pytest.approx(1 / (12 * 25), rel=1e-9)
    gap = lloyd_max(Density(lambda x: ((x < 1) | (x > 4)).double(), (0.0, 5.0)), 6)
    # Both jumps lie inside panels of width 5/4096.
    assert torch.allclose(gap.levels, torch.tensor([1, 3, 5, 25, 27, 29], dtype=torch.float64) / 6, atol=1e-3)


@given(st.integers(0, 2**31), st.integers(2, 6), st.integers(5, 40), st.booleans())
def test_few_samples_have_the_best_of_all_quantizers(seed, levels, n, ties):
    x = normal(n, seed)
    x = (3 * x).round() / 3 if ties else x
    book, best = lloyd_max(x, levels), best_error(x, levels)
    assert book.distortion == pytest.approx(best, rel=1e-9, abs=1e-14)
    assert book.distortion == pytest.approx(float((book.round(x) - x).square().mean()), rel=1e-9, abs=1e-14)
    assert book.distortion <= quantile_codebook(x, levels).distortion * (1 + 1e-9) + 1e-15


def test_more_samples_than_bins_close_to_the_best_of_all(monkeypatch):
    monkeypatch.setattr(module, "RUNS", 128)
    for seed in range(5):
        x = normal(300, seed)
        # Measured: 0.05 % off at the worst; 4 % without the start from 128 bins.
        assert lloyd_max(x, 8).distortion <= 1.005 * best_error(x, 8)


def test_samples_approach_the_density():
    x = normal(200_000)
    for levels in (4, 64):
        found, exact = lloyd_max(x, levels), lloyd_max("gaussian", levels)
        assert found.distortion == pytest.approx(exact.distortion, rel=0.02)  # 200 000 samples scatter by about 1 %


def test_error_never_rises_from_turn_to_turn():
    x = normal(3000, 5) ** 3
    for source in (x, "laplace"):
        course = [lloyd_max(source, 32, max_steps=n).distortion for n in (1, 2, 3, 5, 9, 17, 200)]
        assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(course))


def test_a_plain_turn_is_lloyds():
    # One turn from the equal-mass bins, against the definition written out.
    x = normal(500, 3)
    starts = [quantile_codebook(x, 4).levels]
    for _ in range(300):
        nearest = (x[:, None] - starts[-1]).abs().argmin(1)
        starts.append(torch.stack([x[nearest == i].mean() for i in range(4)]))
    literal = float((x - starts[-1][(x[:, None] - starts[-1]).abs().argmin(1)]).square().mean())
    assert lloyd_max(x, 4).distortion <= literal * (1 + 1e-12)


def test_few_distinct_samples_outliers_and_offsets():
    x = torch.tensor([3.0, -1.0, 3.0, 3.0, 0.5])
    for levels in (3, 4, 256):
        book = lloyd_max(x, levels)
        assert book.distortion == 0 and len(book.levels) == levels
        assert torch.equal(book.round(x), x)
    assert lloyd_max(torch.full((7,), 2.5), 2).distortion == 0
    far = torch.cat([normal(2000), torch.tensor([1e6], dtype=torch.float64)])  # nearly all equally wide cells empty
    assert lloyd_max(far, 16).distortion < 0.03
    assert len(lloyd_max(far, 256).levels.unique()) == 256
    moved = lloyd_max(normal(2000) + 1e6, 16)
    assert moved.distortion == pytest.approx(lloyd_max(normal(2000), 16).distortion, rel=1e-6)


def test_dtypes_purity_and_shape():
    x = normal(600).float().reshape(20, 30)
    before = x.clone()
    book = lloyd_max(x, 8)
    assert torch.equal(x, before) and book.levels.dtype == torch.float64
    assert lloyd_max(x.bfloat16(), 8).distortion == pytest.approx(book.distortion, rel=0.05)
    codes = book.encode(x)
    assert codes.dtype == torch.uint8 and codes.shape == x.shape
    nearest = (x.double()[..., None] - book.levels).abs().argmin(-1)
    assert torch.equal(codes.long(), nearest)


def test_bad_input(as_user):
    for levels in (1, 257, 4.0, True, None):
        with pytest.raises(ValueError, match="levels must be a whole number from 2 to 256"):
            lloyd_max("gaussian", levels)
    with pytest.raises(ValueError, match="'normal'"):
        lloyd_max("normal", 4)
    with pytest.raises(ValueError, match="NaN or infinite"):
        lloyd_max(torch.tensor([1.0, float("nan")]), 2)
    with pytest.raises(ValueError, match="no sample"):
        lloyd_max(torch.zeros(0), 2)
    with pytest.raises(ValueError, match="max_steps"):
        lloyd_max("gaussian", 2, max_steps=0)
    for source in (3, [1.0, 2.0], torch.arange(5)):
        with pytest.raises(TypeError, match=r"samples, got|floating point"):
            lloyd_max(source, 2)
    with pytest.raises(ValueError, match="NaN or infinite"):
        lloyd_max("gaussian", 2).encode(torch.tensor([float("nan")]))
