r"""Student's t, cut off and of unit variance: a density with as heavy tails as one likes.

Notation: ν degrees of freedom, $f(t) \propto (1 + t^2/\nu)^{-(\nu+1)/2}$; κ kurtosis.
Source: Kuzmin et al. 2023, arXiv:2307.02973, section 3.   Syllabus: 1.22
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mlcomp.context import isolated
from mlcomp.sources.density import Density


@dataclass(frozen=True)
class StudentT(Density):
    """A density of unit variance in panels that widen with |x|: wherever the tail is cut, they are a few hundred."""

    scale: float  # of the t that it is when multiplied by this
    energy, symmetric = 1.0, True

    @cached_property
    def _edges(self) -> Tensor:
        end = math.asinh(self.support[1] * self.scale)
        panels = 2 * math.ceil(32 * end)
        return torch.linspace(-end, end, panels + 1, dtype=torch.float64).sinh() / self.scale


@isolated
def student_t(kurtosis: float, *, limit: float = 1000.0) -> StudentT:
    r"""Return Student's t, cut off at ± ``limit`` times its scale, of the given kurtosis and unit variance.

    Cut off, because real tensors are finite, and without the cut no t with 4 or fewer degrees of freedom has a
    kurtosis. The degrees of freedom ν ≥ 2 that give κ are found by bisection.

    Args:
        kurtosis: above 3, and below what ν = 2 gives at this limit (about 6390 at 1000).
        limit: in units of the scale of t; ≥ 10.
    Raises:
        ValueError: a kurtosis or limit that no such density has.
    """
    if not 10 <= limit < math.inf:
        raise ValueError(f"limit must be finite and ≥ 10 scales, got {limit!r}")
    low, high = math.log(2.0), math.log(1e6)
    largest, least = _cut_t(2.0, limit).kurtosis, _cut_t(1e6, limit).kurtosis
    if not least <= kurtosis <= largest:
        raise ValueError(f"kurtosis must be from {least:.5f} to {largest:.1f} at {limit=}, got {kurtosis!r}")
    for _ in range(60):
        middle = (low + high) / 2
        heavy = _cut_t(math.exp(middle), limit).kurtosis > kurtosis
        low, high = (middle, high) if heavy else (low, middle)
    dof = math.exp(low)
    whole = _cut_t(dof, limit).cells(torch.tensor([-limit, limit], dtype=torch.float64))
    return _cut_t(dof, limit, scale=math.sqrt(float(whole.spread)))


def _cut_t(dof: float, limit: float, *, scale: float = 1.0) -> StudentT:
    end = limit / scale
    return StudentT(lambda x: torch.exp(-(dof + 1) / 2 * torch.log1p((x * scale) ** 2 / dof)), (-end, end), scale)
