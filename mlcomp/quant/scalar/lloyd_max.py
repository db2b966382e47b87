r"""The scalar quantizer with the least mean squared error for a source.

Notation: density f, levels $y_i$, thresholds $t_i$. Where the error is least,
$t_i = \tfrac12 (y_{i-1} + y_i)$ (each value has its nearest level) and
$y_i = \int_{t_i}^{t_{i+1}} x f \,/ \int_{t_i}^{t_{i+1}} f$ (each level is the centroid of its cell).
Source: Lloyd 1957 (published 1982), method I; Max 1960, eq. (4).   Syllabus: 1.05
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from mlcomp.checks import check_whole
from mlcomp.context import isolated
from mlcomp.quant.scalar.codebook import Codebook, cells_between, check_levels, distortion, nearest, squared_error
from mlcomp.sources.as_source import as_source
from mlcomp.sources.density import Density
from mlcomp.sources.gaussian_laplace import Gaussian, Laplace
from mlcomp.sources.samples import Samples
from mlcomp.sources.source import Cells, Continuous, Source, from_zero

ROUNDING = 1e-13  # relative, of an error summed over up to 256 cells in float64
RUNS = 1024  # bins of the samples among which dynamic programming finds the best start


@isolated
def lloyd_max(
    source: Tensor | str | Density, levels: int, *, max_steps: int = 10_000, tolerance: float = 1e-12
) -> Codebook:
    r"""Find levels and thresholds by turns: midpoints for the thresholds, centroids for the levels.

    Args:
        source: samples (a float tensor of any shape), "gaussian" or "laplace" (mean 0, variance 1), or a
            :class:`mlcomp.sources.Density`. Not modified; computed in float64.
        levels: N, 2 to 256.
        max_steps: turns at the most.
        tolerance: stop when no level moves by more than this share of the levels' range.
    Returns:
        The codebook; its ``distortion`` is the mean squared error on the source.
    Raises:
        ValueError: levels outside 2..256, an empty source, NaN or infinity, max_steps < 1. TypeError: another source.
    Guarantee: the error never rises from turn to turn (up to rounding), and is no larger than that of equal-mass bins
        with their centroids. It is the least possible for log-concave densities (Gaussian, Laplace, uniform), whose
        fixed point is unique (Fleischer 1964, Trushkin 1982), and for up to 1024 distinct samples. Otherwise it is a
        local best. With at most N distinct samples it is 0 (surplus levels repeat the largest).
    Deviations: Lloyd starts anywhere, we at the best of three: bins of equal mass, bins of equal mass of $f^{1/3}$
        and, for samples, the best partition of up to 1024 bins (dynamic programming). For densities a Newton step
        replaces a turn wherever it does better, since turns alone need thousands at 256 levels. A level whose cell is
        empty moves into the cell with the largest error.
    Cost: samples are sorted once; a turn is then N binary searches in running sums. The dynamic programming takes
        N·1024² additions.
    """
    check_levels(levels)
    check_whole("max_steps", max_steps, 1)
    where = as_source(source)
    if isinstance(where, Samples):
        distinct = where.x.unique_consecutive()
        if len(distinct) <= levels:
            y = torch.cat([distinct, distinct[-1:].expand(levels - len(distinct))])
            return Codebook(y, nearest(y), 0.0)
    start = min(_starts(where, levels), key=lambda y: distortion(where, y, nearest(y)))
    y = _descend(where, start, max_steps, tolerance)
    if isinstance(where, Gaussian | Laplace):
        y = (y - y.flip(0)) / 2  # the best one is symmetric; turns keep that up to rounding
    return Codebook(y, nearest(y), distortion(where, y, nearest(y)))


def _centroids(cells: Cells) -> Tensor:
    """Return the centroids, ascending; levels of empty cells move into the cells with the largest errors."""
    mass, centre, spread = cells
    full = mass > 0
    if full.all():
        return centre
    centre, spread = centre[full], spread[full]
    worst = spread.topk(min(int((~full).sum()), len(spread))).indices
    surplus = len(full) - len(centre) - len(worst)
    # Between two equal levels lies a threshold of the same value: the next turn splits the cell there.
    return torch.cat([centre, centre[worst], centre[-1:].expand(surplus)]).sort().values


def _descend(source: Source, y: Tensor, max_steps: int, tolerance: float) -> Tensor:
    """Return the levels where the turns end."""
    cells = _cells(source, y)
    error, stride = _error(cells, y), math.inf
    for _ in range(max_steps):
        new = _centroids(cells)
        found = _cells(source, new)
        if isinstance(source, Continuous) and (jump := _newton(source, cells, y)) is not None:
            landed = _cells(source, jump)
            # Near the end errors differ by rounding alone, and the Newton step is still the better one.
            if _error(landed, jump) <= _error(found, new) * (1 + ROUNDING):
                new, found = jump, landed
        moved, value = float((new - y).abs().max()), _error(found, new)
        if value > error * (1 - ROUNDING) and moved >= stride:
            break  # neither the error nor the strides get smaller any more: only rounding is left
        y, cells, error, stride = new, found, value, moved
        if moved <= tolerance * float(y[-1] - y[0]):
            break
    return y


def _cells(source: Source, y: Tensor) -> Cells:
    return cells_between(source, nearest(y))


def _error(cells: Cells, y: Tensor) -> float:
    return float(squared_error(cells, y))


def _newton(source: Continuous, cells: Cells, y: Tensor) -> Tensor | None:
    r"""Return the levels after one Newton step on the error, or None if they would cross.

    Half its gradient is $g_i = m_i (y_i - c_i)$ with mass m and centroid c; thresholds at midpoints move with the
    levels, which makes the second derivative tridiagonal.
    """
    coupling = y.diff() * source.density(nearest(y)) / 4
    hessian = torch.diag(cells.mass) - torch.diag(coupling, 1) - torch.diag(coupling, -1)
    hessian[:-1, :-1] -= torch.diag(coupling)
    hessian[1:, 1:] -= torch.diag(coupling)
    step, info = torch.linalg.solve_ex(hessian, cells.mass * (y - cells.centre))
    new = y - step
    return new if int(info) == 0 and bool(torch.isfinite(new).all()) and bool((new.diff() > 0).all()) else None


def _starts(source: Source, levels: int) -> Iterator[Tensor]:
    """Yield the centroids of bins that good quantizers resemble."""
    inner = torch.arange(1, levels, dtype=torch.float64) / levels
    for quantile in (source.cube_root_quantile, source.quantile):
        yield _centroids(cells_between(source, quantile(inner)))
    if isinstance(source, Samples) and (y := _best_runs(source, levels)) is not None:
        yield y


def _best_runs(source: Samples, levels: int) -> Tensor | None:
    """Return the centroids of the best partition of up to 1024 bins into runs; None if too few bins hold samples."""
    x = source.x.unique_consecutive()
    if len(x) <= RUNS:
        edges = nearest(x)  # each sample its own bin: the answer is exact
    else:
        inner = torch.arange(2, RUNS, 2).to(x) / RUNS
        edges = torch.cat([source.quantile(inner), source.cube_root_quantile(inner)]).sort().values
    cells = cells_between(source, edges)
    mass, centre, spread = (part[cells.mass > 0] for part in cells)
    if len(mass) < levels:
        return None
    away = centre - source.mean
    m0, m1, m2 = (from_zero(part) for part in (mass, mass * away, spread + mass * away.square()))
    size, first = m0 - m0[:, None], m1 - m1[:, None]
    later = size > 0  # entry (i, j): the run of the bins i … j − 1
    cost = torch.where(later, m2 - m2[:, None] - first.square() / torch.where(later, size, 1.0), math.inf)
    least, before = cost[0], []
    for _ in range(levels - 1):
        least, at = (least[:, None] + cost).min(0)
        before.append(at)
    ends = [len(mass)]
    for at in reversed(before):
        ends.append(int(at[ends[-1]]))
    cut = torch.tensor([0, *ends[::-1]], device=x.device)
    return m1[cut].diff() / m0[cut].diff() + source.mean
