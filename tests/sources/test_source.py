import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch

from mlcomp.sources import Density, gaussian, laplace, sample, student_t
from tests.sources.partial_moments import moments

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
    found = moments(source, torch.tensor(POINTS, dtype=torch.float64))
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
    top = moments(source, torch.tensor([source.bound], dtype=torch.float64))[:, 0]
    torch.testing.assert_close(top, torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64), rtol=0, atol=1e-12)
    # E W⁴ from the tail function alone: ∫ 4t³ P(|W| > t) dt, on a fine geometric grid.
    t = torch.cat([torch.zeros(1), torch.logspace(-4, math.log10(source.bound), 200_001)]).double()
    mass = moments(source, t)[0]
    fourth = float(torch.trapezoid(4 * t**3 * 2 * (mass[-1] - mass), t))
    assert fourth == pytest.approx(source.kurtosis, rel=1e-4)  # trapezoids, and differences near the end
    assert source.smallest_energy(1.0) == 1.0 and source.smallest_energy(0.0) == 0.0


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
        assert float((moments(drawn, x) - moments(source, x)).abs().max()) < 5 * math.sqrt(6 / 400_000)
        for share in (0.25, 0.5, 0.9):
            assert drawn.smallest_energy(share) == pytest.approx(source.smallest_energy(share), rel=0.03)


def test_energies_of_a_density_that_is_not_symmetric():
    source = Density(lambda x: 3 - x, (-1.0, 2.0))  # by hand, with f = (3 − x)/7.5
    assert source.energy == pytest.approx((9 - 3.75) / 7.5) and source.bound == 2 and not source.symmetric
    for t in (0.5, 1.0):  # inside [−1, 1] the odd part falls out: P(|W| ≤ t) = 6t/7.5, E[W²; |W| ≤ t] = 2t³/7.5
        assert source.smallest_energy(6 * t / 7.5) == pytest.approx(2 * t**3 / 7.5, rel=1e-9)
    assert source.smallest_energy(1.0) == source.energy


@pytest.mark.parametrize(
    "source",
    [
        gaussian(),
        laplace(),
        student_t(9.0),
        Density(torch.ones_like, (-1.0, 2.0)),
        sample(torch.randn(99, generator=torch.Generator().manual_seed(0))),
    ],
    ids=["gaussian", "laplace", "student", "density", "sample"],
)
def test_several_grids_at_once_are_each_grid_by_itself(source):
    edges = torch.randn(2, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).sort().values
    together = source.cells(edges)
    for i in range(2):
        for j in range(3):
            for part, alone in zip(together, source.cells(edges[i, j]), strict=True):
                torch.testing.assert_close(part[i, j], alone, rtol=1e-12, atol=1e-15)
