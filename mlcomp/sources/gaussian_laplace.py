r"""The two densities of the lecture in closed form: the standard normal one, and Laplace's of unit variance.

Notation: φ and Φ density and distribution function of the Gaussian; $\lambda = \sqrt2$.
Source: Max 1960 (Gaussian); Panter and Dite 1951 (the cube root).   Syllabus: 1.04, 1.05, 1.22
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.context import isolated
from mlcomp.sources.source import Cells, Continuous, cells_from_moments


class Gaussian(Continuous):
    r"""Mean 0, variance 1. Antiderivatives: $\Phi$ of φ, $-\varphi$ of xφ, $\Phi - x\varphi$ of x²φ."""

    kurtosis, bound, symmetric = 3.0, 12.0, True  # beyond 12 lies 1e-30 of the variance

    @isolated
    def cells(self, edges: Float[Tensor, "*grids edges"]) -> Cells:
        """Return the cells between ascending edges; the mass from the nearer tail, where nothing cancels."""
        below, above = (torch.erfc(t / math.sqrt(2)) / 2 for t in (-edges, edges))
        mass = torch.where(edges[..., :-1] > 0, -above.diff(), below.diff())
        f = self.density(edges)
        xf = torch.where(edges.isinf(), 0.0, edges * f)
        return cells_from_moments(mass, -f.diff(), mass - xf.diff())

    @isolated
    def quantile(self, share: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return Φ⁻¹(share)."""
        return torch.special.ndtri(share)

    @isolated
    def cube_root_quantile(self, share: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the quantile of the cube root: a Gaussian of √3 times the width."""
        return math.sqrt(3) * self.quantile(share)

    @isolated
    def density(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return φ(x)."""
        return torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)


class Laplace(Continuous):
    r"""Mean 0, variance 1: $f(x) = \tfrac{\lambda}{2} e^{-\lambda|x|}$."""

    kurtosis, bound, symmetric = 6.0, 50.0, True  # beyond 50 lies 1e-27 of the variance

    @isolated
    def cells(self, edges: Float[Tensor, "*grids edges"]) -> Cells:
        """Return the cells between ascending edges: those of the right half, and of the left one mirrored."""
        right, left = self._tails(edges.clamp(min=0)), self._tails(-edges.clamp(max=0))
        return cells_from_moments(*(s * b.diff() - a.diff() for s, a, b in zip((1, -1, 1), right, left, strict=True)))

    @isolated
    def quantile(self, share: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return ∓log(2·tail)/λ."""
        return torch.sign(share - 0.5) * -torch.log(2 * torch.minimum(share, 1 - share)) / math.sqrt(2)

    @isolated
    def cube_root_quantile(self, share: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the quantile of the cube root: a Laplace density of three times the width."""
        return 3 * self.quantile(share)

    @isolated
    def density(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return f(x)."""
        return torch.exp(-math.sqrt(2) * x.abs()) / math.sqrt(2)

    def _tails(self, x: Tensor) -> list[Tensor]:
        """Return the integrals of f, xf and x²f from x ≥ 0 to infinity."""
        rate = math.sqrt(2)
        tail, x = torch.exp(-rate * x) / 2, torch.where(x.isinf(), 0.0, x)
        return [tail, tail * (x + 1 / rate), tail * (x.square() + 2 * x / rate + 2 / rate**2)]


gaussian, laplace = Gaussian, Laplace  # called like the functions `student_t` and `sample`, which make the others
