r"""A sparse matrix as a bitmask: one bit for each weight says whether it is kept; the kept weights follow in order.

Notation: W weight (out, inp), nnz weights that are not zero, v bits of a value: $v\,\mathrm{nnz}$ bits, and out·inp
more for the mask. A bit for every weight is 1/16 of a dense 16-bit matrix, so the format is smaller than dense from
6.25 % zeros on. The price is the product: the place of a value in the list is the number of ones before it.
Source: Zhu and Gupta 2017, arXiv:1710.01878 (what bit-mask and CSR cost).   Syllabus: 3.06
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mlcomp.checks import check_floating, check_tensor, check_weight
from mlcomp.context import isolated
from mlcomp.formats.packing import pack, unpack
from mlcomp.formats.stored import Stored


@dataclass(frozen=True)
class Bitmask:
    """A weight (out, inp) as its non-zero values and one bit for each place.

    Attributes:
        values: (nnz,) what is not zero, row by row, in the weight's own dtype.
        mask: (⌈out·inp/8⌉,) uint8, packed by :func:`mlcomp.formats.pack`, row by row; 1 where a value stands.
        shape: (out, inp).
    """

    values: Float[Tensor, " nnz"]
    mask: UInt8[Tensor, " nbytes"]
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        """Raise ValueError or TypeError unless the parts fit each other."""
        check_floating("values", self.values)
        check_tensor("mask", self.mask)
        ones = int(unpack(self.mask, 1, self.shape).count_nonzero())
        if self.values.shape != (ones,):
            raise ValueError(f"values must be ({ones},), one for each 1 of mask, got {tuple(self.values.shape)}")

    @classmethod
    @isolated
    def from_dense(cls, weight: Float[Tensor, "out inp"]) -> "Bitmask":
        """Store a matrix without its zeros.

        Args:
            weight: (out, inp), any float dtype; not modified.
        Raises:
            ValueError: NaN or inf in weight, or no entry. TypeError: not floating point.
        Guarantee: ``dequantize()`` equals the weight (a zero comes back as +0).
        """
        weight = check_weight(weight)
        kept = weight != 0
        return cls(weight[kept], pack(kept.to(torch.uint8), 1), (weight.shape[0], weight.shape[1]))

    @isolated
    def dequantize(self) -> Float[Tensor, "out inp"]:
        """Return the weight (out, inp): each 1 of the mask takes the next value."""
        weight = self.values.new_zeros(self.shape)
        weight[unpack(self.mask, 1, self.shape).bool()] = self.values
        return weight

    @property
    def nbytes(self) -> int:
        """Bytes of values and mask as they lie in memory."""
        return self.values.nbytes + self.mask.nbytes

    @property
    def bits_per_weight(self) -> float:
        """``nbytes`` in bits over the number of weights, zeros included."""
        return self.nbytes * 8 / (self.shape[0] * self.shape[1])

    def stored(self) -> Stored:
        """Return values and mask. Where the values of a row begin has to be counted, so none is decoded alone."""
        tensors = {"values": self.values.contiguous(), "mask": self.mask.contiguous()}
        return Stored("bitmask", tensors, {"shape": list(self.shape)})

    @classmethod
    def from_stored(cls, stored: Stored) -> "Bitmask":
        """Return what was stored."""
        out, inp = stored.shape
        return cls(stored.tensors["values"], stored.tensors["mask"], (out, inp))
