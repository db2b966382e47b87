r"""Where a scalar quantizer's numbers come from: a Gaussian, a Laplace, any density, or samples.

A quantizer asks a source for its cells (mass, centroid, spread of intervals), for quantiles, and for quantiles of the
density $\propto f^{1/3}$, by which good levels are spread.

Source: Panter and Dite 1951 (the cube root).   Syllabus: 1.04, 1.05
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import check_finite
from mlcomp.quant.density import Cells, Density, cells_from_moments, from_zero, interpolate


class Gaussian:
    r"""Mean 0, variance 1. Antiderivatives: $\Phi$ of φ, $-\varphi$ of xφ, $\Phi - x\varphi$ of x²φ."""

    def cells(self, edges: Float[Tensor, " n"]) -> Cells:
        """Return the cells between ascending edges; the mass from the nearer tail, where nothing cancels."""
        a, b = edges[:-1], edges[1:]
        ndtr = torch.special.ndtr
        mass = torch.where(a > 0, ndtr(-a) - ndtr(-b), ndtr(b) - ndtr(a))
        f = self.density(edges)
        xf = torch.where(edges.isinf(), 0.0, edges * f)
        return cells_from_moments(mass, -f.diff(), mass - xf.diff())

    def quantile(self, share: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return Φ⁻¹(share)."""
        return torch.special.ndtri(share)

    def cube_root_quantile(self, share: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the quantile of the cube root: a Gaussian of √3 times the width."""
        return math.sqrt(3) * self.quantile(share)

    def density(self, x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return φ(x)."""
        return torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)


class Laplace:
    r"""Mean 0, variance 1: $f(x) = \tfrac{\lambda}{2} e^{-\lambda|x|}$ with $\lambda = \sqrt2$."""

    def cells(self, edges: Float[Tensor, " n"]) -> Cells:
        """Return the cells between ascending edges: those of the right half, and of the left one mirrored."""
        right, left = self._tails(edges.clamp(min=0)), self._tails(-edges.clamp(max=0))
        return cells_from_moments(*(s * b.diff() - a.diff() for s, a, b in zip((1, -1, 1), right, left, strict=True)))

    def quantile(self, share: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return ∓log(2·tail)/λ."""
        return torch.sign(share - 0.5) * -torch.log(2 * torch.minimum(share, 1 - share)) / math.sqrt(2)

    def cube_root_quantile(self, share: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the quantile of the cube root: a Laplace density of three times the width."""
        return 3 * self.quantile(share)

    def density(self, x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return f(x)."""
        return torch.exp(-math.sqrt(2) * x.abs()) / math.sqrt(2)

    def _tails(self, x: Tensor) -> list[Tensor]:
        """Return the integrals of f, xf and x²f from x ≥ 0 to infinity."""
        rate = math.sqrt(2)
        tail, x = torch.exp(-rate * x) / 2, torch.where(x.isinf(), 0.0, x)
        return [tail, tail * (x + 1 / rate), tail * (x.square() + 2 * x / rate + 2 / rate**2)]


class Samples:
    """A sample, sorted once; the cells of any intervals are then look-ups in running sums."""

    def __init__(self, x: Tensor):
        """Sort ``x`` (any shape and float dtype) and sum it up in float64."""
        self.x = x.flatten().double().sort().values
        # Sums of deviations from the mean: a large common offset would eat the digits of the spread.
        self.mean = self.x.mean()
        away = self.x - self.mean
        self.sums = [from_zero(part) / len(away) for part in (torch.ones_like(away), away, away.square())]

    def cells(self, edges: Float[Tensor, " n"]) -> Cells:
        """Return the cells between ascending edges; a sample on an edge belongs to the interval below it."""
        at = torch.searchsorted(self.x, edges, right=True)
        mass, centre, spread = cells_from_moments(*(part[at].diff() for part in self.sums))
        return Cells(mass, torch.where(mass > 0, centre + self.mean, 0.0), spread)

    def quantile(self, share: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the midpoint of the two samples between which the share falls."""
        n = len(self.x)
        at = (share * n).round().long().clamp(1, max(1, n - 1))
        return (self.x[at - 1] + self.x[at.clamp(max=n - 1)]) / 2

    def cube_root_quantile(self, share: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the quantile of the cube root of a histogram with 2·n^⅓ bins (Rice's rule)."""
        bins = math.ceil(2 * len(self.x) ** (1 / 3))
        edges = torch.lerp(self.x[0], self.x[-1], torch.linspace(0, 1, bins + 1).to(self.x))
        below = torch.cat([torch.full_like(edges[:1], -math.inf), edges[1:]])  # the first interval holds its low end
        mass = self.cells(below).mass.pow(1 / 3)
        return interpolate(from_zero(mass), edges, share)


Source = Gaussian | Laplace | Density | Samples


def as_source(source: Tensor | str | Density) -> Source:
    """Return the source that the argument means.

    Args:
        source: "gaussian" or "laplace" (mean 0, variance 1), a :class:`Density`, or samples: a float tensor of any
            shape.
    Raises:
        ValueError: an unknown name, no sample, NaN or infinity. TypeError: another type.
    """
    if isinstance(source, Density):
        return source
    if isinstance(source, str):
        if source not in ("gaussian", "laplace"):
            raise ValueError(f'source must be "gaussian", "laplace", a Density or samples, got {source!r}')
        return Gaussian() if source == "gaussian" else Laplace()
    if not isinstance(source, Tensor) or not source.is_floating_point():
        kind = source.dtype if isinstance(source, Tensor) else type(source).__name__
        raise TypeError(f'source must be "gaussian", "laplace", a Density or a float tensor of samples, got {kind}')
    if source.numel() == 0:
        raise ValueError("source holds no sample")
    check_finite("source", source)
    return Samples(source)
