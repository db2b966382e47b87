import itertools
import math

import pytest
import torch
from scipy import integrate, stats

from mlcomp.sources import as_source

SCIPY = {"gaussian": stats.norm(), "laplace": stats.laplace(scale=math.sqrt(0.5))}


@pytest.mark.parametrize("name", ["gaussian", "laplace"])
def test_cells_and_quantiles_against_scipy(name):
    f, source = SCIPY[name], as_source(name)
    share = torch.tensor([1e-9, 0.01, 0.3, 0.5, 0.8, 1 - 1e-9], dtype=torch.float64)
    assert torch.allclose(source.quantile(share), torch.from_numpy(f.ppf(share.numpy())), rtol=1e-9, atol=1e-12)
    edges = torch.tensor([-math.inf, -2.0, -0.3, 0.0, 0.7, 5.0, 6.0, math.inf], dtype=torch.float64)
    cells = source.cells(edges)
    for i, (a, b) in enumerate(itertools.pairwise(edges.tolist())):
        mass = integrate.quad(f.pdf, a, b)[0]
        centre = integrate.quad(lambda x: x * f.pdf(x), a, b)[0] / mass
        spread = integrate.quad(lambda x, c=centre: (x - c) ** 2 * f.pdf(x), a, b)[0]
        got = [float(part[i]) for part in cells]
        assert got == pytest.approx([mass, centre, spread], rel=1e-6)  # quad's own error in the far cells


@pytest.mark.parametrize(("name", "width"), [("gaussian", math.sqrt(3)), ("laplace", 3.0)])
def test_cube_root_quantiles_against_scipy(name, width):
    # The cube root of e^(−x²/2) is e^(−x²/(2·3)), that of e^(−λ|x|) is e^(−λ|x|/3).
    share = torch.tensor([0.01, 0.3, 0.5, 0.8], dtype=torch.float64)
    wide = torch.from_numpy(width * SCIPY[name].ppf(share.numpy()))
    assert torch.allclose(as_source(name).cube_root_quantile(share), wide, rtol=1e-9, atol=1e-12)


def test_far_tails_of_a_gaussian_keep_their_digits():
    edges = torch.tensor([9.0, 9.5, math.inf], dtype=torch.float64)
    tails = stats.norm.sf([9.0, 9.5])
    for sign in (1, -1):
        mass = as_source("gaussian").cells((sign * edges).sort().values).mass
        assert mass.sort().values.tolist() == pytest.approx([tails[1], tails[0] - tails[1]], rel=1e-9, abs=0)
