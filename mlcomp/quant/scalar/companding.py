r"""Companding: a fixed curve, then equally wide steps, then the curve's inverse. μ-law, A-law, and the best curve.

Notation: c the compressing curve, odd and ascending from [−1, 1] onto [−1, 1]; N levels. The quantizer rounds c(x) to
the midpoints of N equal intervals and applies $c^{-1}$.
Source: μ-law and A-law: Smith 1957 and ITU-T G.711; step size and error: Bennett 1948; the best curve: Panter and
Dite 1951.   Syllabus: 1.06
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import check_interval, check_positive
from mlcomp.context import isolated
from mlcomp.quant.scalar.codebook import Codebook, check_levels, distortion
from mlcomp.sources.as_source import as_source
from mlcomp.sources.density import Density


@dataclass(frozen=True)
class MuLaw:
    r"""$c(x) = \mathrm{sign}(x)\,\ln(1 + \mu|x|) / \ln(1 + \mu)$; μ = 255 in G.711, and μ → 0 is no companding."""

    mu: float = 255.0

    def __post_init__(self) -> None:
        """Raise ValueError unless μ is positive and finite."""
        check_positive("mu", self.mu)

    @isolated
    def compress(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return c(x); beyond ±1 as at ±1."""
        return x.sign() * torch.log1p(self.mu * x.abs().clamp(max=1)) / math.log1p(self.mu)

    @isolated
    def expand(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the x in [−1, 1] with c(x) = y."""
        return y.sign() * torch.expm1(y.abs().clamp(max=1) * math.log1p(self.mu)) / self.mu


@dataclass(frozen=True)
class ALaw:
    r"""$c(x) = \mathrm{sign}(x)\cdot A|x|/(1 + \ln A)$ for $|x| \le 1/A$, else $(1 + \ln A|x|)/(1 + \ln A)$."""

    a: float = 87.6

    def __post_init__(self) -> None:
        """Raise ValueError unless A is at least 1 (where the curve is a straight line) and finite."""
        check_interval("a", self.a, "[1, inf)")

    @isolated
    def compress(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return c(x); beyond ±1 as at ±1."""
        size = self.a * x.abs().clamp(max=1)
        return x.sign() * torch.where(size <= 1, size, 1 + size.clamp(min=1).log()) / (1 + math.log(self.a))

    @isolated
    def expand(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the x in [−1, 1] with c(x) = y."""
        size = y.abs().clamp(max=1) * (1 + math.log(self.a))
        return y.sign() * torch.where(size <= 1, size, (size.clamp(min=1) - 1).exp()) / self.a


@isolated
def companded_codebook(law: MuLaw | ALaw, levels: int) -> Codebook:
    r"""Return the quantizer as a table on [−1, 1]: a companded code is decoded by one look-up, whatever the curve.

    Levels are $c^{-1}$ at the midpoints of N equal intervals of [−1, 1], thresholds $c^{-1}$ at their ends.

    Raises:
        ValueError: levels outside 2..256.
    Guarantee: encode(x) is ⌈N(c(x) + 1)/2⌉ − 1, up to rounding at the thresholds; an even N has no level at zero.
    """
    check_levels(levels)
    place = torch.arange(2 * levels + 1, dtype=torch.float64) / levels - 1
    x = law.expand(place)
    return Codebook(x[1::2].contiguous(), x[2:-1:2].contiguous())


@isolated
def optimal_companding(source: Tensor | str | Density, levels: int) -> Codebook:
    r"""Return the companded quantizer with the best curve for a source, $c' \propto f^{1/3}$.

    Levels are the quantiles (i + ½)/N of the density $\propto f^{1/3}$, thresholds the quantiles i/N. For many levels
    its error tends to the least possible, $\frac{1}{12N^2}\bigl(\int f^{1/3}\bigr)^3$.

    Args:
        source: as for :func:`mlcomp.quant.lloyd_max`. For samples the density is a histogram of
            2·n^⅓ bins.
        levels: N, 2 to 256.
    Raises:
        ValueError: levels outside 2..256, an empty source, NaN or infinity. TypeError: another source.
    """
    check_levels(levels)
    where = as_source(source)
    y = where.cube_root_quantile((torch.arange(levels, dtype=torch.float64) + 0.5) / levels)
    thresholds = where.cube_root_quantile(torch.arange(1, levels, dtype=torch.float64) / levels)
    return Codebook(y, thresholds, distortion(where, y, thresholds))
