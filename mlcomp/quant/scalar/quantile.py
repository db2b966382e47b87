r"""The quantile quantizer: every code is used equally often. And NF4, its descendant for normal weights.

Notation: F distribution function, N levels, thresholds $t_i = F^{-1}(i/N)$.
Source: Dettmers et al. 2022, arXiv:2110.02861, appendix; NF4: Dettmers et al. 2023, arXiv:2305.14314, section 3.
Syllabus: 1.04
"""

import torch
from torch import Tensor

from mlcomp.checks import check_choice
from mlcomp.context import isolated
from mlcomp.quant.scalar.codebook import Codebook, cells_between, check_levels, distortion, nearest
from mlcomp.sources.as_source import as_source
from mlcomp.sources.density import Density
from mlcomp.sources.samples import Samples

# QLoRA's outermost quantile: the mean of 1 − 1/32 and 1 − 1/30, halfway to the ends of 16 and of 15 equal masses.
NF4_OFFSET = 1 - (1 / 32 + 1 / 30) / 2


@isolated
def quantile_codebook(source: Tensor | str | Density, levels: int, *, representative: str = "mean") -> Codebook:
    r"""Cut the source into bins of equal mass and take one value from each.

    Args:
        source: samples (a float tensor of any shape), "gaussian" or "laplace" (mean 0, variance 1), or a
            :class:`mlcomp.sources.Density`. Not modified; computed in float64.
        levels: N, 2 to 256.
        representative: "mean" (the centroid, which has the least error) or "median" (the quantile (i + ½)/N; of a
            bin of samples, the middle one, or halfway between the middle two).
    Returns:
        The codebook. Its thresholds are the quantiles and not the midpoints of its levels: with "nearest level" the
        codes would no longer be used equally often.
    Raises:
        ValueError: levels outside 2..256, an empty source, NaN or infinity, unknown representative.
        TypeError: another source.
    Guarantee: every code has mass 1/N, so the codes carry log₂ N bits each and no coder can shorten them. On samples
        without ties, counts differ by one at most. A bin that ties leave empty gets its threshold as its level.
    """
    check_levels(levels)
    check_choice("representative", representative, ("mean", "median"))
    where = as_source(source)
    thresholds = where.quantile(torch.arange(1, levels, dtype=torch.float64) / levels)
    if representative == "median":
        y = where.quantile((torch.arange(levels, dtype=torch.float64) + 0.5) / levels)
        if isinstance(where, Samples):
            y = _medians(where.x, thresholds, y)
    else:
        mass, centre, _ = cells_between(where, thresholds)
        y = torch.where(mass > 0, centre, torch.cat([thresholds, thresholds[-1:]]))
    return Codebook(y, thresholds, distortion(where, y, thresholds))


def _medians(x: Tensor, thresholds: Tensor, empty: Tensor) -> Tensor:
    """Return the medians of the sorted samples ``x`` between the thresholds; those of ``empty`` where there are none.

    The quantile of the samples would be half a sample off in a bin with an odd number of them.
    """
    ends = torch.searchsorted(x, thresholds, right=True)
    start = torch.cat([ends.new_zeros(1), ends])
    stop = torch.cat([ends, ends.new_full((1,), len(x))])
    lower, upper = ((start + stop - 1) // 2).clamp(min=0), ((start + stop) // 2).clamp(max=len(x) - 1)
    return torch.where(stop > start, (x[lower] + x[upper]) / 2, empty)


@isolated
def nf4_codebook() -> Codebook:
    r"""Return NormalFloat4: 16 levels on [−1, 1], for weights divided by the largest magnitude of their block.

    Quantiles of a Gaussian, seven below zero and eight above, an exact zero between them, divided by the largest:
    $\Phi^{-1}$ at equally spaced shares from ½ to 0.9677. Values take their nearest level.

    The paper's equation (4) averages neighbouring quantiles; the published code, and hence every NF4 checkpoint, has
    the quantiles above. So does this.
    """
    positive = _normal_quantiles(9)
    negative = -_normal_quantiles(8).flip(0)
    y = torch.cat([negative, torch.zeros(1, dtype=torch.float64), positive]) / positive[-1]
    return Codebook(y, nearest(y))


def _normal_quantiles(count: int) -> Tensor:
    """Return Φ⁻¹ at ``count`` equally spaced shares from ½ (left out) to the offset, ascending."""
    return torch.special.ndtri(torch.linspace(0.5, NF4_OFFSET, count, dtype=torch.float64)[1:])
