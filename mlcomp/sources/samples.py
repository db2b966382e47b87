r"""A tensor's own entries as a source: sorted once, with the running sums that make every question a look-up.

Source: Kuzmin et al. 2023, arXiv:2307.02973, section 3 (the sample kurtosis).   Syllabus: 1.04, 1.05, 1.22
"""

import math
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import check_values, removals
from mlcomp.context import isolated
from mlcomp.sources.source import Cells, Source, cells_from_moments, from_zero, interpolate


class Samples(Source):
    """The entries of a tensor, each of the same mass."""

    @isolated
    def __init__(self, x: Tensor):
        """Sort ``x`` (any shape and float dtype; not modified) and sum it up in float64."""
        self.x = _ascending(x.detach().flatten().to(torch.promote_types(x.dtype, torch.float32))).double()
        # Sums of deviations from the mean: a large common offset would eat the digits of the spread.
        self.mean = self.x.mean()
        away = self.x - self.mean
        self._sums = [from_zero(part).div_(len(away)) for part in (away, away.square())]

    @isolated
    def cells(self, edges: Float[Tensor, "*grids edges"]) -> Cells:
        """Return the cells between ascending edges; a sample on an edge belongs to the interval below it."""
        at = torch.searchsorted(self.x, edges, right=True)
        share = at.double() / len(self.x)
        mass, centre, spread = cells_from_moments(share.diff(), *(part[at].diff() for part in self._sums))
        return Cells(mass, torch.where(mass > 0, centre + self.mean, 0.0), spread)

    @isolated
    def quantile(self, share: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the midpoint of the two samples between which the share falls."""
        n = len(self.x)
        at = (share * n).round().long().clamp(1, max(1, n - 1))
        return (self.x[at - 1] + self.x[at.clamp(max=n - 1)]) / 2

    @isolated
    def cube_root_quantile(self, share: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the quantile of the cube root of a histogram with 2·n^⅓ bins (Rice's rule)."""
        bins = math.ceil(2 * len(self.x) ** (1 / 3))
        edges = torch.lerp(self.x[0], self.x[-1], torch.linspace(0, 1, bins + 1).to(self.x))
        below = torch.cat([torch.full_like(edges[:1], -math.inf), edges[1:]])  # the first interval holds its low end
        mass = self.cells(below).mass.pow(1 / 3)
        return interpolate(from_zero(mass), edges, share)

    @isolated
    def smallest_energy(self, share: float) -> float:
        """Return the mean square that the ``share`` of entries of least magnitude hold (count rounded half up)."""
        return float(self._small[removals(share, len(self.x))])

    @property
    def bound(self) -> float:
        """The largest magnitude."""
        return float(self.x[[0, -1]].abs().max())

    @cached_property
    @isolated
    def energy(self) -> float:
        """The mean square."""
        return float(self.x.square().mean())

    @cached_property
    @isolated
    def kurtosis(self) -> float:
        """κ of the entries."""
        square = (self.x - self.mean).square()
        return float(square.square().mean() / square.mean() ** 2)

    @cached_property
    def _small(self) -> Tensor:
        """(n + 1,): Σw² of the entries of least magnitude, over n."""
        return from_zero(_ascending(self.x.abs()).square_()).div_(len(self.x))


@isolated
def sample(tensor: Tensor) -> Samples:
    """Return the source that a tensor's own entries are.

    Args:
        tensor: any shape, any float dtype, not all entries equal; not modified.
    Raises:
        ValueError: NaN or inf, or a constant tensor, whose kurtosis has no meaning. TypeError: not floating point.
    Cost: a sort, and one more for ``smallest_energy``; 32 bytes an entry.
    """
    check_values("tensor", tensor)
    if tensor.numel() == 0 or tensor.min() == tensor.max():
        raise ValueError(f"a sample needs at least two different values, got {tensor.numel()} equal one(s)")
    return Samples(tensor.cpu())


def _ascending(x: Tensor) -> Tensor:
    """Sort; on a CPU by numpy, which takes a tenth of torch's time (and no indices)."""
    return torch.from_numpy(np.sort(x.numpy())) if x.device.type == "cpu" else x.sort().values
