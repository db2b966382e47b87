import math
import struct
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.quant import ALaw, MuLaw, companded_codebook, lloyd_max, optimal_companding, quantile_codebook

LAWS = [MuLaw(), MuLaw(5.0), MuLaw(1e-3), ALaw(), ALaw(1.0), ALaw(2.0)]


def snr(book, x):
    return 10 * math.log10(float(x.square().mean() / (book.round(x) - x).square().mean()))


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_expand_undoes_compress(law):
    x = torch.arange(-2000, 2001, dtype=torch.float64) / 2000
    y = law.compress(x)
    assert torch.allclose(law.expand(y), x, atol=1e-12) and (y.diff() > 0).all()
    assert torch.equal(y, -y.flip(0))
    assert y[[0, 2000, -1]].tolist() == pytest.approx([-1, 0, 1], abs=1e-12)
    beyond = torch.tensor([-3.0, 7.0])
    assert law.compress(beyond).tolist() == pytest.approx([-1, 1]) and law.expand(beyond).tolist() == pytest.approx(
        [-1, 1]
    )


def test_curves_by_their_formulas():
    x = np.linspace(1e-4, 1, 999)
    mu = np.log(1 + 255 * x) / np.log(256)
    assert np.allclose(MuLaw().compress(torch.from_numpy(x)), mu, atol=1e-14)
    a = np.where(x < 1 / 87.6, 87.6 * x, 1 + np.log(np.maximum(87.6 * x, 1))) / (1 + np.log(87.6))
    assert np.allclose(ALaw().compress(torch.from_numpy(x)), a, atol=1e-14)
    assert np.allclose(ALaw(1.0).compress(torch.from_numpy(x)), x, atol=1e-14)  # A = 1: no companding


@pytest.mark.parametrize(("law", "low", "high"), [(MuLaw(), 0.97, 1.08), (ALaw(), 0.94, 1.06)])
def test_against_the_telephone_standard(law, low, high):
    """G.711 bends the same curves out of 16 straight pieces; Python 3.11 and 3.12 still carry its tables."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        audioop = pytest.importorskip("audioop")
    decode = audioop.ulaw2lin if isinstance(law, MuLaw) else audioop.alaw2lin
    table = torch.tensor(struct.unpack("<256h", decode(bytes(range(256)), 2))).double().sort().values / 32768
    ratio = table / companded_codebook(law, 256).levels
    # The pieces leave the curve by up to 8 %. Near zero μ-law's pieces are one straight line through 0: left out.
    outer = table.abs() > 0.005
    assert low < float(ratio[outer].min()) and float(ratio[outer].max()) < high
    middle = (table[1:] + table[:-1]) / 2
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(0)).double().clamp(-8, 8)
    for db in (-10, -20, -30):
        level = x * 10 ** (db / 20) / 2
        standard = table[torch.bucketize(level, middle)]
        theirs = 10 * math.log10(float(level.square().mean() / (standard - level).square().mean()))
        assert snr(companded_codebook(law, 256), level) == pytest.approx(theirs, abs=1.0)


@given(st.sampled_from(LAWS), st.integers(2, 256), st.integers(0, 2**31))
def test_table_is_the_arithmetic(law, levels, seed):
    x = (torch.rand(50, generator=torch.Generator().manual_seed(seed)) * 2.2 - 1.1).double()
    book = companded_codebook(law, levels)
    place = levels * (law.compress(x) + 1) / 2
    clear = (place - place.round()).abs() > 1e-9  # at a threshold rounding decides
    expected = (place.ceil() - 1).clamp(0, levels - 1)
    codes = book.encode(x)
    assert torch.equal(codes[clear].double(), expected[clear])
    assert torch.allclose(
        book.decode(codes, torch.float64), law.expand((2 * codes.double() + 1) / levels - 1), atol=1e-12
    )


@pytest.mark.parametrize("level_db", [-40, -30, -20, -15])
@pytest.mark.parametrize("shape", ["uniform", "gaussian"])
def test_snr_of_mu_law_is_bennetts(level_db, shape):
    g = torch.Generator().manual_seed(1)
    x = (
        torch.rand(200_000, generator=g).double() * 2 - 1
        if shape == "uniform"
        else torch.randn(200_000, generator=g).double()
    )
    x = x / x.square().mean().sqrt() * 10 ** (level_db / 20)
    x = x.clamp(-1, 1)
    power, size, mu, n = float(x.square().mean()), float(x.abs().mean()), 255.0, 256
    noise = math.log1p(mu) ** 2 / (3 * n**2 * mu**2) * (1 + 2 * mu * size + mu**2 * power)
    # Fine steps are assumed: the quietest signal here spans about 80 of the 256.
    assert snr(companded_codebook(MuLaw(mu), n), x) == pytest.approx(10 * math.log10(power / noise), abs=0.1)


def test_flat_where_a_uniform_quantizer_falls():
    x = torch.randn(50_000, generator=torch.Generator().manual_seed(2)).double()
    levels = [10 ** (db / 20) for db in (-50, -40, -30, -20, -12)]
    for law in (MuLaw(), ALaw()):
        curve = [snr(companded_codebook(law, 256), (a * x).clamp(-1, 1)) for a in levels]
        # 38 dB at the plateau; the classic figure: no more than 6 dB lost over 30 dB of level.
        assert max(curve[1:]) - min(curve[1:]) < 8 and max(curve) < 38.5
    straight = companded_codebook(ALaw(1.0), 256)
    loud, quiet = snr(straight, levels[3] * x), snr(straight, levels[1] * x)
    assert loud - quiet == pytest.approx(20, abs=0.5)  # a decibel for a decibel


@pytest.mark.parametrize(("name", "constant"), [("gaussian", math.sqrt(3) * math.pi / 2), ("laplace", 4.5)])
def test_best_curve_reaches_panter_and_dite(name, constant):
    for n in (16, 64, 256):
        companded, best = optimal_companding(name, n), lloyd_max(name, n)
        assert best.distortion <= companded.distortion
        # The next term is of the order 1/N³: 13 % at 16 levels, 0.9 % at 256.
        assert best.distortion == pytest.approx(constant / n**2, rel=2.6 / n)
    assert companded.distortion == pytest.approx(best.distortion, rel=0.02)
    assert companded.distortion < quantile_codebook(name, 256).distortion / 5


def test_best_curve_from_samples():
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    assert optimal_companding(x, 64).distortion == pytest.approx(lloyd_max(x, 64).distortion, rel=0.1)


def test_bad_input(as_user):
    for mu in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="mu must be"):
            MuLaw(mu)
    for a in (0.5, math.inf, math.nan):
        with pytest.raises(ValueError, match="a must lie in"):
            ALaw(a)
    with pytest.raises(ValueError, match="2 to 256"):
        companded_codebook(MuLaw(), 257)
    with pytest.raises(ValueError, match="'cauchy'"):
        optimal_companding("cauchy", 4)
