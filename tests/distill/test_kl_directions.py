"""Both directions against SciPy's quadrature and optimizer, a fine grid, closed forms and differences."""

import math
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import minimize, root
from scipy.special import logsumexp

from mlcomp.distill import fit_gaussian, gaussian_divergence

TWO = ((0.7, 0.3), (-2.0, 3.0), (0.6, 1.0))
EVEN = ((0.5, 0.5), (-2.0, 2.0), (0.5, 0.5))
THREE = ((0.2, 0.5, 0.3), (-3.0, 0.0, 4.0), (0.5, 0.4, 0.7))
WIDE = ((0.3, 0.3, 0.4), (-13.0, 1.0, 13.0), (1.0, 1.0, 2.0))


def tensors(mixture):
    return [torch.tensor(x, dtype=torch.float64) for x in mixture]


@cache
def reverse_fits(mixture):
    return fit_gaussian(*tensors(mixture), direction="reverse")


def log_p(x, mixture):
    each = [
        math.log(w) - 0.5 * ((x - m) / s) ** 2 - math.log(s * math.sqrt(2 * math.pi))
        for w, m, s in zip(*mixture, strict=True)
    ]
    return logsumexp(each, axis=0)


def log_q(x, mean, std):
    return -0.5 * ((x - mean) / std) ** 2 - math.log(std * math.sqrt(2 * math.pi))


def integrated(mean, std, mixture, direction):
    """KL by SciPy's adaptive rule, piece by piece."""

    def forward(x):
        return np.exp(log_p(x, mixture)) * (log_p(x, mixture) - log_q(x, mean, std))

    def reverse(x):
        return np.exp(log_q(x, mean, std)) * (log_q(x, mean, std) - log_p(x, mixture))

    f = forward if direction == "forward" else reverse
    pieces = np.linspace(min(mean - 10 * std, -40), max(mean + 10 * std, 40), 120)
    return sum(quad(f, a, b, epsabs=1e-14, epsrel=1e-12)[0] for a, b in pairwise(pieces))


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize(("mixture", "mean", "std"), [(TWO, 1.0, 2.24), (THREE, -3.0, 0.5), (WIDE, 0.0, 11.0)])
def test_quadrature(mixture, mean, std, direction):
    got = gaussian_divergence(torch.tensor([mean]), torch.tensor([std]), *tensors(mixture), direction=direction)
    # std comes in as float32, so both take its value there.
    std = float(torch.tensor(std))
    assert float(got) == pytest.approx(integrated(mean, std, mixture, direction), abs=1e-9)


def test_forward_is_moments():
    """KL(p ‖ q) = const + cross-entropy: SciPy finds the mean and variance of p, from anywhere."""
    w, m, s = map(np.array, TWO)
    mean = float(w @ m)
    std = math.sqrt(float(w @ (s**2 + m**2)) - mean**2)
    (fit,) = fit_gaussian(*tensors(TWO), direction="forward")
    assert (fit.mean, fit.std) == pytest.approx((mean, std), rel=1e-12)
    assert fit.divergence == pytest.approx(integrated(mean, std, TWO, "forward"), abs=1e-10)
    torch.testing.assert_close(fit.hessian, torch.tensor([[1 / std**2, 0.0], [0.0, 2.0]], dtype=torch.float64))

    def value(theta):
        mu, log_std = torch.tensor(theta, dtype=torch.float64)
        return float(gaussian_divergence(mu, log_std.exp(), *tensors(TWO), direction="forward"))

    found = minimize(value, [mean - 2, math.log(std) + 0.5], method="BFGS").x
    assert found == pytest.approx([mean, math.log(std)], abs=1e-4)


def test_three_minima_of_the_reverse_direction():
    """Two modes and, between them, a wide one that is better than the second mode."""
    fits = reverse_fits(TWO)
    got = [(round(f.mean, 4), round(f.std, 4), round(f.divergence, 4)) for f in fits]
    # To four digits, as they were found with another program.
    assert got == [(-1.9975, 0.6040, 0.3555), (0.9872, 2.2404, 1.1917), (2.9787, 1.0325, 1.1985)]


def test_far_modes_cost_the_logarithm_of_their_weight():
    """q on one of two modes that do not overlap: KL = log(1/weight), here log 2 to 1e-4."""
    fits = reverse_fits(EVEN)
    assert len(fits) == 3
    assert [f.mean for f in fits[:2]] == pytest.approx([-2.0, 2.0], abs=1e-3)
    assert [f.divergence for f in fits[:2]] == pytest.approx([math.log(2)] * 2, abs=1.5e-4)
    assert fits[2].divergence == pytest.approx(1.8712, abs=1e-4)


@pytest.mark.parametrize("distance", [1.0, 1.5])
def test_near_modes_have_one_minimum(distance):
    (fit,) = fit_gaussian(*tensors(([0.5, 0.5], [-distance, distance], [1.0, 1.0])), direction="reverse")
    assert fit.mean == pytest.approx(0, abs=1e-9) and fit.std > 1


def test_a_gaussian_fits_itself():
    for direction in ("forward", "reverse"):
        (fit,) = fit_gaussian(*tensors(([1.0], [3.0], [0.2])), direction=direction)
        assert (fit.mean, fit.std, fit.divergence) == pytest.approx((3.0, 0.2, 0.0), abs=1e-9)
        want = torch.tensor([[25.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
        torch.testing.assert_close(fit.hessian, want, atol=1e-7, rtol=1e-7)


def own_divergence(mixture, means, log_stds):
    """The reverse divergence on a grid, by Gauss–Legendre in x: another rule than the library's."""
    x, weight = np.polynomial.legendre.leggauss(1500)
    x, weight = 40 * x, 40 * weight
    p = log_p(x, mixture)
    values = np.empty((len(means), len(log_stds)))
    for j, log_std in enumerate(log_stds):
        std = math.exp(log_std)
        q = np.exp(log_q(x[None], means[:, None], std))
        values[:, j] = (q * weight) @ -p - math.log(std) - 0.5 * math.log(2 * math.pi * math.e)
    return values


@pytest.mark.parametrize(("mixture", "count"), [(TWO, 3), (EVEN, 3), (THREE, 4)])
def test_no_minimum_is_missing(mixture, count):
    """On a fine grid the points below their eight neighbours are those that are found, and no others."""
    means, log_stds = np.linspace(-6, 6, 241), np.linspace(math.log(0.25), math.log(6), 121)
    values = own_divergence(mixture, means, log_stds)
    inner = values[1:-1, 1:-1]
    shifts = [(i, j) for i in (0, 1, 2) for j in (0, 1, 2) if (i, j) != (1, 1)]
    lowest = np.all([inner < values[i : i + 239, j : j + 119] for i, j in shifts], axis=0)
    grid = sorted((means[i + 1], log_stds[j + 1]) for i, j in zip(*np.nonzero(lowest), strict=True))
    fits = sorted((f.mean, math.log(f.std)) for f in reverse_fits(mixture))
    assert len(fits) == len(grid) == count
    for found, near in zip(fits, grid, strict=True):  # a grid point is at most one cell away
        assert abs(found[0] - near[0]) < 0.05 and abs(found[1] - near[1]) < 0.03


def test_minima_and_saddles_balance():
    """The divergence grows without bound on all sides of the plane: minima − saddles + maxima = 1."""

    def gradient(theta):
        h = 1e-4
        points = np.array([[h, 0], [-h, 0], [0, h], [0, -h]]) + theta
        mean, std = torch.tensor(points[:, 0]), torch.tensor(points[:, 1]).exp()
        v = gaussian_divergence(mean, std, *tensors(TWO), direction="reverse").numpy()
        return np.array([v[0] - v[1], v[2] - v[3]]) / (2 * h)

    fits = reverse_fits(TWO)
    saddles = set()
    for start in ([-0.5, 0.5], [0.0, 0.5], [2.5, 0.5], [2.7, 0.2]):
        found = root(gradient, start, tol=1e-6)
        if found.success and all(abs(found.x[0] - f.mean) > 1e-2 for f in fits):
            saddles.add((round(found.x[0], 2), round(found.x[1], 2)))
    assert len(fits) - len(saddles) == 1


@pytest.mark.parametrize("mixture", [TWO, THREE])
def test_hessians_by_difference(mixture):
    h = 1e-3
    for fit in reverse_fits(mixture):
        steps = torch.tensor([-h, 0.0, h], dtype=torch.float64)
        mean = (fit.mean + steps)[:, None].expand(3, 3)
        std = (math.log(fit.std) + steps).exp().expand(3, 3)
        v = gaussian_divergence(mean, std, *tensors(mixture), direction="reverse")
        first = torch.stack((v[2, 1] - v[0, 1], v[1, 2] - v[1, 0])) / (2 * h)
        assert float(first.abs().max()) < 1e-5  # h² times a third derivative
        mixed = (v[2, 2] - v[2, 0] - v[0, 2] + v[0, 0]) / 4
        twice = torch.stack((v[2, 1] - 2 * v[1, 1] + v[0, 1], mixed, mixed, v[1, 2] - 2 * v[1, 1] + v[1, 0]))
        torch.testing.assert_close(twice.view(2, 2) / h**2, fit.hessian, rtol=1e-4, atol=1e-4)
        assert torch.linalg.eigvalsh(fit.hessian)[0] > 0


def test_units_change_nothing():
    """x → 10 x − 7: means and deviations move along, the divergences stay."""
    w, m, s = tensors(TWO)
    for direction in ("forward", "reverse"):
        moved = fit_gaussian(w, 10 * m - 7, 10 * s, direction=direction)
        here = reverse_fits(TWO) if direction == "reverse" else fit_gaussian(w, m, s, direction=direction)
        for a, b in zip(here, moved, strict=True):
            assert (10 * a.mean - 7, 10 * a.std, a.divergence) == pytest.approx(
                (b.mean, b.std, b.divergence), abs=1e-8
            )
            units = torch.tensor([10.0, 1.0], dtype=torch.float64)
            torch.testing.assert_close(b.hessian * units * units[:, None], a.hessian, rtol=1e-6, atol=1e-9)


BAD = [
    ({"weights": [0.5, 0.6]}, "sum 1"),
    ({"weights": [1.0, 0.0]}, "positive"),
    ({"stds": [1.0, -1.0]}, "positive"),
    ({"stds": [1.0]}, "one for each weight"),
    ({"means": [0.0, math.nan]}, "NaN"),
    ({"means": [0.0, 50.0]}, "farther"),
]


@pytest.mark.parametrize(("changed", "message"), BAD)
def test_bad_mixtures(changed, message, as_user):
    parts = {"weights": [0.5, 0.5], "means": [-1.0, 1.0], "stds": [1.0, 1.0]} | changed
    parts = {name: torch.tensor(x) for name, x in parts.items()}
    with pytest.raises(ValueError, match=message):
        fit_gaussian(**parts, direction="reverse")
    with pytest.raises(ValueError, match=message):
        gaussian_divergence(torch.zeros(1), torch.ones(1), **parts, direction="forward")


def test_bad_points(as_user):
    mixture = tensors(TWO)
    with pytest.raises(ValueError, match="direction"):
        fit_gaussian(*mixture, direction="backward")
    for mean, std in ((torch.zeros(2), torch.ones(1)), (torch.zeros(1), torch.zeros(1))):
        with pytest.raises(ValueError, match="std"):
            gaussian_divergence(mean, std, *mixture, direction="reverse")
