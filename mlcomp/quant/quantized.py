"""The result of every uniform weight quantizer: codes, the grids they live on, and the honest size.

Syllabus: 1.02, 1.03
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from mlcomp.context import isolated
from mlcomp.formats.packing import packed_nbytes


@dataclass(frozen=True)
class Quantized:
    """A weight as integer codes on affine grids, one grid for each row and group of columns.

    Attributes:
        codes: (out, inp) uint8, 0 … 2^bits − 1.
        step: (rows, groups) [weight units], in the dtype it is stored in; rows is out, or 1 for one grid per tensor.
        zero: (rows, groups), the code of the value 0.
        bits: bits per code.
        symmetric: the zero code is 2^(bits−1) everywhere and is not stored.
        group: (inp,) the group of each column, where groups are not consecutive equal runs; else None.
    """

    codes: UInt8[Tensor, "out inp"]
    step: Float[Tensor, "rows groups"]
    zero: Float[Tensor, "rows groups"]
    bits: int
    symmetric: bool
    group: Int[Tensor, " inp"] | None = None

    @isolated
    def dequantize(self) -> Float[Tensor, "out inp"]:
        """Return the weight (out, inp) that the codes stand for, in the dtype of ``step``, at least float32."""
        inp = self.codes.shape[1]
        groups = self.step.shape[1]
        index = self.group
        if index is None:
            index = torch.arange(inp, device=self.codes.device) // (inp // groups)
        step = self.step if self.step.dtype == torch.float64 else self.step.float()
        return (self.codes.to(step.dtype) - self.zero[:, index]) * step[:, index]

    @property
    def nbytes(self) -> int:
        """Bytes as packed by :func:`mlcomp.formats.pack`, each array padded to whole bytes.

        Codes take ``bits`` each, steps their dtype, zero codes ``bits`` each where they are stored, and an explicit
        group index ⌈log₂ groups⌉ bits for each column.
        """
        size = packed_nbytes(self.codes.numel(), self.bits) + self.step.nbytes
        if not self.symmetric:
            size += packed_nbytes(self.zero.numel(), self.bits)
        if self.group is not None:
            size += packed_nbytes(self.group.numel(), (self.step.shape[1] - 1).bit_length())
        return size

    @property
    def bits_per_weight(self) -> float:
        """``nbytes`` in bits over the number of weights."""
        return self.nbytes * 8 / self.codes.numel()
