r"""A scalar quantizer as a table: ascending levels, and thresholds between them.

Notation: levels $y_0 \le \dots \le y_{N-1}$, thresholds $t_1 \le \dots \le t_{N-1}$; x gets the code i with
$t_i < x \le t_{i+1}$.   Syllabus: 1.04, 1.05, 1.06
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mlcomp.checks import check_finite, check_whole, narrowed
from mlcomp.context import isolated
from mlcomp.sources.source import Cells, Source


@dataclass(frozen=True)
class Codebook:
    """A scalar quantizer.

    Attributes:
        levels: (N,) float64, ascending, 2 to 256.
        thresholds: (N − 1,) float64, ascending.
        distortion: mean squared error on the source the codebook was made for; None where it was made for none.
    """

    levels: Float[Tensor, " levels"]
    thresholds: Float[Tensor, " thresholds"]
    distortion: float | None = None

    @isolated
    def encode(self, x: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
        """Return the code of each value, of any float dtype.

        Raises:
            ValueError: NaN or infinity.
        """
        check_finite("x", x)
        return torch.bucketize(x.double(), self.thresholds.to(x.device)).to(torch.uint8)

    @isolated
    def decode(self, codes: UInt8[Tensor, "*shape"], dtype: torch.dtype = torch.float32) -> Float[Tensor, "*shape"]:
        """Return the levels of the codes."""
        return narrowed(self.levels, dtype).to(codes.device)[codes.long()]

    @isolated
    def round(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the level of each value, in its dtype: decode(encode(x))."""
        return self.decode(self.encode(x), x.dtype)


def check_levels(levels: int) -> None:
    """Raise unless ``levels`` is a whole number from 2 to 256."""
    check_whole("levels", levels, 2, 256)


def nearest(levels: Float[Tensor, "*grids levels"]) -> Float[Tensor, "*grids thresholds"]:
    """Return the thresholds that give each value its nearest level: the midpoints."""
    return (levels[..., :-1] + levels[..., 1:]) / 2


def cells_between(source: Source, thresholds: Float[Tensor, "*grids thresholds"]) -> Cells:
    """Return the cells that the thresholds cut the whole line into."""
    edges = torch.nn.functional.pad(thresholds, (1, 1), value=math.inf)
    edges[..., 0] = -math.inf
    return source.cells(edges)


def squared_error(cells: Cells, levels: Float[Tensor, "*grids levels"]) -> Float[Tensor, "*grids"]:
    """Return the mean squared error of giving each cell its level."""
    return (cells.spread + cells.mass * (levels - cells.centre).square()).sum(-1)


def distortion(source: Source, levels: Tensor, thresholds: Tensor) -> float:
    """Return the mean squared error of the quantizer on the source."""
    return float(squared_error(cells_between(source, thresholds), levels))
