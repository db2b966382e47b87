import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch

from mlcomp.scalar_source import gaussian, laplace, sample, student_t

POINTS = [-7.0, -1.3, -0.02, 0.0, 0.4, 2.0, 5.5]


def parent_t(kurtosis):
    """Return (pdf, bound) of an uncut Student t with unit variance, from scipy; κ < 9 has light enough tails."""
    dof = 4 + 6 / (kurtosis - 3)
    t = scipy.stats.t(dof, scale=math.sqrt((dof - 2) / dof))
    return t.pdf


@pytest.mark.parametrize(
    ("source", "pdf", "tolerance"),
    [
        (gaussian(), scipy.stats.norm.pdf, 1e-10),
        (laplace(), scipy.stats.laplace(scale=0.5**0.5).pdf, 1e-10),
        # The cut at 1000 scales takes 1e-5 of the fourth moment of this t, so ν differs a little.
        (student_t(4.5), parent_t(4.5), 1e-6),
    ],
    ids=["gaussian", "laplace", "student"],
)
def test_moments_are_the_integrals_of_the_density(source, pdf, tolerance):
    found = source.moments(torch.tensor(POINTS, dtype=torch.float64))
    for i, x in enumerate(POINTS):
        for k in range(3):
            # In parts, so that the integrator sees the peak, and no kink inside a part.
            whole = sum(
                scipy.integrate.quad(lambda t, k=k: t**k * pdf(t), a, b, epsabs=1e-13, limit=200)[0]
                for a, b in ((-40, min(x, -1)), (min(x, -1), min(x, 0)), (min(x, 0), x))
            )
            assert float(found[k, i]) == pytest.approx(whole, abs=tolerance), (x, k)


@pytest.mark.parametrize("source", [gaussian(), laplace(), student_t(3.5), student_t(60.0), student_t(3000.0)])
def test_mass_variance_and_kurtosis(source):
    top = source.moments(torch.tensor([source.bound], dtype=torch.float64))[:, 0]
    torch.testing.assert_close(top, torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64), rtol=0, atol=1e-12)
    # E W⁴ from the tail function alone: ∫ 4t³ P(|W| > t) dt, on a fine geometric grid.
    t = torch.cat([torch.zeros(1), torch.logspace(-4, math.log10(source.bound), 200_001)]).double()
    mass = source.moments(t)[0]
    fourth = float(torch.trapezoid(4 * t**3 * 2 * (mass[-1] - mass), t))
    assert fourth == pytest.approx(source.kurtosis, rel=1e-4)  # trapezoids, and differences near the end
    assert source.smallest_energy(1.0) == 1.0 and source.smallest_energy(0.0) == 0.0


def test_student_t_without_a_cut_that_matters_has_the_textbook_degrees_of_freedom():
    mine = student_t(5.0).moments(torch.tensor([1.0, 2.0], dtype=torch.float64))[0]
    dof = 7  # κ = 3 + 6/(ν − 4)
    other = scipy.stats.t(dof, scale=math.sqrt(5 / 7)).cdf([1.0, 2.0])
    assert mine.tolist() == pytest.approx(other.tolist(), abs=1e-5)


def test_densities_agree_with_a_monte_carlo_sample():
    rng = np.random.default_rng(0)
    draws = {
        "gaussian": (gaussian(), rng.standard_normal(400_000)),
        "laplace": (laplace(), rng.laplace(scale=0.5**0.5, size=400_000)),
    }
    for source, values in draws.values():
        drawn = sample(torch.from_numpy(values))
        x = torch.tensor(POINTS, dtype=torch.float64)
        # Five standard errors of means whose terms have a spread of at most √6.
        assert float((drawn.moments(x) - source.moments(x)).abs().max()) < 5 * math.sqrt(6 / 400_000)
        for share in (0.25, 0.5, 0.9):
            assert drawn.smallest_energy(share) == pytest.approx(source.smallest_energy(share), rel=0.03)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_sample_is_the_plain_sums(dtype):
    tensor = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = tensor.clone()
    w = tensor.double().flatten()
    source = sample(tensor)
    assert torch.equal(tensor, before)
    assert source.kurtosis == pytest.approx(scipy.stats.kurtosis(w.numpy(), fisher=False), rel=1e-12)
    assert source.energy == pytest.approx(float(w.square().mean()), rel=1e-12)
    assert source.bound == float(w.abs().max())
    for x in (-1.0, 0.0, 0.5, float(w[3])):
        below = w <= x
        expected = torch.stack([below.double(), w * below, w**2 * below]).mean(1)
        torch.testing.assert_close(source.moments(torch.tensor([x], dtype=torch.float64))[:, 0], expected)
    small = w.abs().sort().values
    for share in (0.0, 0.1, 0.5, 1.0):
        count = math.floor(share * 35 + 0.5)
        assert source.smallest_energy(share) == pytest.approx(float(small[:count].square().sum() / 35), abs=1e-15)


def test_bad_input(as_user):
    for kurtosis in (2.9, 1e6, float("nan")):
        with pytest.raises(ValueError, match="kurtosis must be from"):
            student_t(kurtosis)
    for limit in (5.0, float("inf")):
        with pytest.raises(ValueError, match="limit must be"):
            student_t(5.0, limit=limit)
    with pytest.raises(ValueError, match="NaN"):
        sample(torch.tensor([1.0, float("nan")]))
    for constant in (torch.ones(4), torch.zeros(0)):
        with pytest.raises(ValueError, match="two different values"):
            sample(constant)
    with pytest.raises(TypeError, match="floating-point"):
        sample(torch.ones(3, dtype=torch.int32))
