import math

import pytest
import torch
from scipy import stats

from mlcomp.sources import Density


def test_cells_quantiles_and_density_of_a_beta_distribution():
    f = stats.beta(2, 5)
    d = Density(lambda x: x * (1 - x) ** 4, (0.0, 1.0))
    edges = torch.tensor([-math.inf, 0.1, 0.1001, 0.5, 0.99, math.inf], dtype=torch.float64)
    mass, centre, spread = d.cells(edges)
    for i, (a, b) in enumerate(((0, 0.1), (0.1, 0.1001), (0.1001, 0.5), (0.5, 0.99), (0.99, 1))):
        m = f.expect(lambda x: 1, lb=a, ub=b)
        c = f.expect(lambda x: x, lb=a, ub=b) / m
        assert float(mass[i]) == pytest.approx(m, rel=1e-9, abs=1e-15)
        assert float(centre[i]) == pytest.approx(c, rel=1e-6)
        expected = f.expect(lambda x, c=c: (x - c) ** 2, lb=a, ub=b)
        assert float(spread[i]) == pytest.approx(expected, rel=1e-6, abs=1e-15)
    share = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
    # Linear inside a panel: an error of about 1/4096².
    assert torch.allclose(d.quantile(share), torch.from_numpy(f.ppf(share.numpy())), atol=1e-6)
    x = torch.tensor([-0.5, 0.2, 1.5], dtype=torch.float64)
    assert torch.allclose(d.density(x), torch.from_numpy(f.pdf(x.numpy())), rtol=1e-12)


def test_kurtosis_is_about_the_mean():
    # Beta(2, 5) has the mean 2/7; its excess kurtosis is −0.12 (6[(a−b)²(a+b+1) − ab(a+b+2)]/[ab(a+b+2)(a+b+3)]).
    d = Density(lambda x: x * (1 - x) ** 4, (0.0, 1.0))
    assert d.kurtosis == pytest.approx(3 - 0.12, rel=1e-9)


def test_cube_root_quantile():
    # The cube root of 4x³ is proportional to x, whose quantile is the root of the share.
    share = torch.tensor([0.04, 0.25, 0.81], dtype=torch.float64)
    found = Density(lambda x: 4 * x**3, (0.0, 1.0)).cube_root_quantile(share)
    assert torch.allclose(found, share.sqrt(), atol=1e-6)


def test_bad_input(as_user):
    for support in ((1.0, 0.0), (0.0, math.inf), (0.0, 0.0), (math.nan, 1.0)):
        with pytest.raises(ValueError, match="support must be"):
            Density(torch.ones_like, support)
    with pytest.raises(ValueError, match="≥ 0"):
        Density(lambda x: x, (-1.0, 1.0))
    with pytest.raises(ValueError, match="NaN or infinite"):
        Density(lambda x: x.log(), (-1.0, 1.0))
    with pytest.raises(ValueError, match="zero everywhere"):
        Density(torch.zeros_like, (0.0, 1.0))
