r"""Weights as codes into one table of levels, with a scale for each block: NF4, Lloyd–Max, quantile, companded.

Notation: W weight, $s_B$ scale of block B, y table: $\hat w = s_B\, y_q$.
Source: Dettmers et al. 2022, arXiv:2110.02861, section 2.1.   Syllabus: 1.04, 1.05, 1.06
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mlcomp.checks import check_choice, check_group_size, check_weight, narrowed
from mlcomp.context import isolated
from mlcomp.formats.packing import pack_planes, packed_nbytes, unpack_planes
from mlcomp.formats.stored import Stored
from mlcomp.quant.scalar.codebook import Codebook, nearest

SHARES = tuple(
    1 - i / 100 for i in range(96)
)  # of a block's largest magnitude, at which "mse" tries the outermost level


@dataclass(frozen=True)
class TableQuantized:
    """A weight as codes into a table.

    Attributes:
        codes: (out, inp) uint8.
        codebook: the table.
        scale: (out, blocks) [weight units], one for each run of inp / blocks columns.
    """

    codes: UInt8[Tensor, "out inp"]
    codebook: Codebook
    scale: Float[Tensor, "out blocks"]

    @isolated
    def dequantize(self) -> Float[Tensor, "out inp"]:
        """Return the weight (out, inp) that the codes stand for, in the dtype of ``scale``."""
        scale = self.scale.repeat_interleave(self.codes.shape[1] // self.scale.shape[1], dim=1)
        return self.codebook.decode(self.codes, scale.dtype) * scale

    @property
    def nbytes(self) -> int:
        """Bytes as packed: ⌈log₂ N⌉ bits a code, the scales, and the table in the scales' dtype.

        The thresholds are needed to encode only. A table that everyone has, as NF4's, is counted all the same.
        """
        levels = len(self.codebook.levels)
        table = levels * self.scale.element_size()
        return packed_nbytes(self.codes.numel(), (levels - 1).bit_length()) + self.scale.nbytes + table

    @property
    def bits_per_weight(self) -> float:
        """``nbytes`` in bits over the number of weights."""
        return self.nbytes * 8 / self.codes.numel()

    def stored(self) -> Stored:
        """Return codes, scales and the table in the scales' dtype; without the thresholds, which only encode."""
        levels = narrowed(self.codebook.levels, self.scale.dtype).to(self.scale.device)
        tensors = {"codes": pack_planes(self.codes, (len(levels) - 1).bit_length())}
        return Stored(
            "table", tensors | {"scale": self.scale.contiguous(), "levels": levels}, {"shape": list(self.codes.shape)}
        )

    @classmethod
    def from_stored(cls, stored: Stored, start: int = 0, stop: int | None = None) -> "TableQuantized":
        """Return what was stored, or some of its rows; its table gives each value the nearest level."""
        tensors, levels = stored.tensors, stored.tensors["levels"].double()
        bits = (len(levels) - 1).bit_length()
        codes = unpack_planes(tensors["codes"], bits, stored.shape, start=start, stop=stop)
        return cls(codes, Codebook(levels, nearest(levels)), tensors["scale"][start:stop])

    @staticmethod
    def by_rows(stored: Stored) -> bool:
        """Return True: each row has its own codes and scales."""
        return True


@isolated
def table_quantize(
    weight: Float[Tensor, "out inp"], codebook: Codebook, *, group_size: int | None = None, scale: str = "absmax"
) -> TableQuantized:
    r"""Divide each block by its scale and give each value its code.

    Args:
        weight: (out, inp), any float dtype, computed in float32 (float64 stays); not modified.
        codebook: the table, for values of the scaled weight.
        group_size: columns that share a scale; must divide ``inp``. None: the whole row.
        scale: "absmax", the largest magnitude of the block, for tables on [−1, 1] (NF4, companded); "rms", the root
            mean square, for tables of unit variance ("gaussian", "laplace"); "mse", the scale with the least squared
            error of those that put the outermost level at the share 1.00, 0.99, …, 0.05 of the block's largest
            magnitude; "none", 1, for tables in weight units.
    Raises:
        ValueError: group_size does not divide inp, NaN or inf in weight, unknown scale.
    Guarantee: a block of zeros decodes to zeros (unless scale is "none"). Scaling a block scales its decoded values.
        With "mse" no block has a larger squared error than with "absmax", for a table that reaches 1 or −1.
    Cost: "mse" encodes the weight 96 times.
    """
    weight = check_weight(weight)
    check_group_size(group_size, weight.shape[1])
    check_choice("scale", scale, ("absmax", "rms", "mse", "none"))
    w = weight if weight.dtype == torch.float64 else weight.float()
    blocks = w.reshape(len(w), -1, group_size or w.shape[1])
    peak = blocks.abs().amax(2)
    if scale == "none":
        s = torch.ones_like(peak)
    elif scale == "rms":
        s = peak * (blocks / _safe(peak)[:, :, None]).square().mean(2).sqrt()
    else:
        s = peak if scale == "absmax" else _best_scale(blocks, peak, codebook)
    codes = codebook.encode(blocks / _safe(s)[:, :, None]).reshape(w.shape)
    return TableQuantized(codes, codebook, s)


def _best_scale(blocks: Tensor, peak: Tensor, codebook: Codebook) -> Tensor:
    unit = blocks / _safe(peak)[:, :, None]
    best, least = torch.zeros_like(peak), torch.full_like(peak, torch.inf)
    for share in SHARES:
        s = share / float(codebook.levels.abs().max())
        error = (unit - codebook.round(unit / s) * s).square().sum(2)
        best, least = torch.where(error < least, s * peak, best), torch.minimum(error, least)
    return best


def _safe(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale, torch.ones_like(scale))
