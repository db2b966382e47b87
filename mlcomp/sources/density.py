r"""Any density on an interval, by quadrature.

Notation: as in :mod:`mlcomp.sources.source`.
Source: Golub and Welsch 1969 (the rule).   Syllabus: 1.04, 1.05
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import check_finite
from mlcomp.context import isolated
from mlcomp.sources.source import Cells, Continuous, cells_from_moments, from_zero, interpolate

PANELS, POINTS = 4096, 8  # panels over the support, Gauss–Legendre points in each


@dataclass(frozen=True)
class Density(Continuous):
    """A density on a finite interval, for :func:`mlcomp.quant.lloyd_max` and :func:`mlcomp.quant.quantile_codebook`.

    Attributes:
        pdf: a function of a float64 tensor, ≥ 0 and finite on the support; it is scaled to total mass 1.
        support: (low, high), finite. Outside it the density counts as 0.

    The support is cut into 4096 panels with 8 Gauss–Legendre points each: exact to rounding where the density is
    smooth on a panel; a kink or jump inside one costs at most a share of that panel's mass. Sums over all panels
    cancel, which leaves a distortion of 256 levels about nine digits.
    """

    pdf: Callable[[Tensor], Tensor]
    support: tuple[float, float]

    def __post_init__(self) -> None:
        """Raise ValueError unless the support is a finite interval and the density a density there."""
        low, high = self.support
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"support must be (low, high), finite, low < high, got {self.support!r}")
        values = self.pdf(self._nodes(self._edges[:-1], self._edges[1:]))
        check_finite("pdf on its support", values)
        if float(values.min()) < 0:
            raise ValueError(f"pdf must be ≥ 0 on its support, got {float(values.min()):.3g}")
        if float(self._table[0][-1]) <= 0:
            raise ValueError("pdf is zero everywhere on its support")

    @isolated
    def cells(self, edges: Float[Tensor, "*grids edges"]) -> Cells:
        """Return the cells between neighbouring ascending edges."""
        at = edges.clamp(*self.support)
        panel = (torch.searchsorted(self._edges, at, right=True) - 1).clamp(0, len(self._edges) - 2)
        rest = self._integrals(self._edges[panel], at)
        total = self._table[0][-1]
        return cells_from_moments(*(((t[panel] + r) / total).diff() for t, r in zip(self._table, rest, strict=True)))

    @isolated
    def quantile(self, share: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the x that have these shares below them, by linear interpolation inside a panel."""
        return interpolate(self._table[0], self._edges, share)

    @isolated
    def cube_root_quantile(self, share: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        r"""Return the same for the density $\propto f^{1/3}$."""
        mass = self._integrals(self._edges[:-1], self._edges[1:], power=1 / 3)[0]
        return interpolate(from_zero(mass), self._edges, share)

    @isolated
    def density(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return f(x), 0 outside the support."""
        low, high = self.support
        return torch.where((x >= low) & (x <= high), self.pdf(x.clamp(low, high)) / self._table[0][-1], 0.0)

    @property
    def bound(self) -> float:
        """The largest magnitude on the support."""
        return max(map(abs, self.support))

    @cached_property
    @isolated
    def energy(self) -> float:
        """E W²."""
        return float(self._table[2][-1] / self._table[0][-1])

    @cached_property
    @isolated
    def kurtosis(self) -> float:
        """κ, by the same rule."""
        x = self._nodes(self._edges[:-1], self._edges[1:])
        f = self._masses(x, self._edges.diff())
        away = x - (f * x).sum() / f.sum()
        return float((f * away**4).sum() * f.sum() / (f * away**2).sum() ** 2)

    @cached_property
    def _edges(self) -> Tensor:
        return torch.linspace(*self.support, PANELS + 1, dtype=torch.float64)

    @cached_property
    def _rule(self) -> tuple[Tensor, Tensor]:
        """Nodes and weights on [−1, 1], from the eigenvectors of the Jacobi matrix of the Legendre polynomials."""
        n = torch.arange(1, POINTS, dtype=torch.float64)
        beside = n / (4 * n.square() - 1).sqrt()
        nodes, vectors = torch.linalg.eigh(torch.diag(beside, 1) + torch.diag(beside, -1))
        return nodes, 2 * vectors[0].square()

    @cached_property
    def _table(self) -> list[Tensor]:
        """The integrals of f, xf and x²f from the low end to each edge of a panel."""
        return [from_zero(part) for part in self._integrals(self._edges[:-1], self._edges[1:])]

    def _nodes(self, a: Tensor, b: Tensor) -> Tensor:
        return (a + b)[..., None] / 2 + (b - a)[..., None] / 2 * self._rule[0]

    def _masses(self, x: Tensor, width: Tensor, power: float = 1.0) -> Tensor:
        return self.pdf(x) ** power * self._rule[1] * width[..., None] / 2

    def _integrals(self, a: Tensor, b: Tensor, power: float = 1.0) -> list[Tensor]:
        x = self._nodes(a, b)
        f = self._masses(x, b - a, power)
        return [(f * x**k).sum(-1) for k in range(3)]
