r"""What a scalar quantizer or a pruner asks of the numbers it is given: cells, quantiles, energies.

Notation: W a weight with density f; of a cell [a, b] its mass $m_0 = \int f$, centroid $m_1/m_0$ and spread
$\int (x - m_1/m_0)^2 f = m_2 - m_1^2/m_0$, with the partial moments $m_k = \int_a^b x^k f(x)\,dx$; κ kurtosis
$E(W-EW)^4/(E(W-EW)^2)^2$ (3 for a Gaussian).
Source: Max 1960 (the cells); Panter and Dite 1951 (the cube root); Kuzmin et al. 2023, arXiv:2307.02973, section 3
(energies and kurtosis).   Syllabus: 1.04, 1.05, 1.22
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.context import isolated


class Cells(NamedTuple):
    """Of each interval: its mass, its centroid (0 where it is empty), and its squared deviation from the centroid."""

    mass: Float[Tensor, "*grids cells"]
    centre: Float[Tensor, "*grids cells"]
    spread: Float[Tensor, "*grids cells"]


class Source(ABC):
    r"""A density, or a tensor's own entries.

    Attributes:
        symmetric: f(−x) = f(x) for all x.
    """

    symmetric: bool = False

    @abstractmethod
    def cells(self, edges: Float[Tensor, "*grids edges"]) -> Cells:
        """Return the cells between neighbouring ascending edges."""

    @abstractmethod
    def quantile(self, share: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the x that have these shares below them."""

    @abstractmethod
    def cube_root_quantile(self, share: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        r"""Return the same for the density $\propto f^{1/3}$, by which good levels are spread."""

    @property
    @abstractmethod
    def kurtosis(self) -> float:
        """κ."""

    @property
    @abstractmethod
    def bound(self) -> float:
        """The largest magnitude; nothing measurable lies beyond."""

    @property
    def energy(self) -> float:
        """E W²."""
        return 1.0

    @isolated
    def smallest_energy(self, share: float) -> float:
        """Return E[W²; |W| ≤ t], where P(|W| ≤ t) = ``share``."""
        if share >= 1:
            return self.energy
        low, high = 0.0, self.bound
        for _ in range(100):  # bisection to the last bit
            middle = (low + high) / 2
            low, high = (middle, high) if float(self._within(middle).mass) < share else (low, middle)
        mass, centre, spread = self._within(low)
        return float(spread + mass * centre.square())

    def _within(self, t: float) -> Cells:
        return self.cells(torch.tensor([-t, t], dtype=torch.float64))


class Continuous(Source):
    """A source that has a density."""

    @abstractmethod
    def density(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return f(x)."""


def cells_from_moments(m0: Tensor, m1: Tensor, m2: Tensor) -> Cells:
    """Return the cells with these moments about 0."""
    full = m0 > 0
    centre = torch.where(full, m1 / torch.where(full, m0, 1.0), 0.0)
    return Cells(m0.clamp(min=0), centre, torch.where(full, m2 - m1 * centre, 0.0).clamp(min=0))


def from_zero(parts: Float[Tensor, " n"]) -> Tensor:
    """Return the running sums of ``parts``, beginning with 0."""
    sums = parts.new_zeros(len(parts) + 1)
    torch.cumsum(parts, 0, out=sums[1:])
    return sums


def interpolate(cumulative: Tensor, edges: Tensor, share: Tensor) -> Tensor:
    """Return where a running sum over intervals reaches each share of its total, linear inside an interval."""
    target = share.to(cumulative) * cumulative[-1]
    at = (torch.searchsorted(cumulative, target) - 1).clamp(0, len(edges) - 2)
    mass = cumulative[at + 1] - cumulative[at]
    inside = torch.where(mass > 0, (target - cumulative[at]) / torch.where(mass > 0, mass, 1.0), 0.5)
    return edges[at] + inside.clamp(0, 1) * (edges[at + 1] - edges[at])
