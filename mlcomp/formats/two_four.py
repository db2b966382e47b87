r"""2:4 sparsity compressed: of four consecutive inputs of a row two values are stored, and where they stood.

Notation: W weight (out, inp) with at most two non-zeros in each block of four inputs. A block keeps two slots, each a
value and its place in the block, 0 … 3: 2 bits. In 16 bits that is 9/16 of dense, whatever the values.
$y_n = \sum_s v_{n,s}\, x_{4\lfloor s/2\rfloor + i_{n,s}}$ over the inp/2 slots s of row n.
Source: Mishra et al. 2021, arXiv:2104.08378, section 3 and Figure 1.   Syllabus: 3.06, 3.07
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer, UInt8
from torch import Tensor

from mlcomp.checks import check_floating, check_tensor, check_values, check_weight, narrowed
from mlcomp.context import isolated
from mlcomp.formats.packing import pack, packed_nbytes, unpack, unpack_planes
from mlcomp.formats.stored import Stored

BLOCK, SLOTS = 4, 2


@dataclass(frozen=True)
class TwoFour:
    """A weight (out, inp) as two values of each block of four, with 2 bits of metadata for each.

    Attributes:
        values: (out, inp/2) in the weight's own dtype; a slot that is not needed holds 0.
        metadata: (⌈out·inp/8⌉,) uint8: the places of the slots, packed by :func:`mlcomp.formats.pack` with 2 bits,
            row by row. So a block is a nibble, the place of its first value in the lower 2 bits.
    """

    values: Float[Tensor, "out slots"]
    metadata: UInt8[Tensor, " nbytes"]

    def __post_init__(self) -> None:
        """Raise ValueError or TypeError unless the parts fit each other."""
        check_floating("values", self.values)
        check_tensor("metadata", self.metadata)
        if self.values.ndim != 2 or self.values.numel() == 0 or self.values.shape[1] % SLOTS:
            raise ValueError(f"values must be (out, inp/2) with inp/2 even, got {tuple(self.values.shape)}")
        need = packed_nbytes(self.values.numel(), 2)
        if self.metadata.dtype != torch.uint8 or self.metadata.shape != (need,):
            raise ValueError(
                f"metadata must be uint8 ({need},), got {self.metadata.dtype} {tuple(self.metadata.shape)}"
            )
        first, second = unpack(self.metadata, 2, (self.values.numel() // SLOTS, SLOTS)).unbind(1)
        if (first >= second).any():
            raise ValueError("metadata must name two places of each block, in ascending order")

    @classmethod
    @isolated
    def from_dense(cls, weight: Float[Tensor, "out inp"]) -> "TwoFour":
        """Compress a matrix that is 2:4 sparse; see :func:`mlcomp.prune.magnitude` to make it so.

        Args:
            weight: (out, inp), any float dtype, inp a multiple of 4; not modified.
        Raises:
            ValueError: a block with three or four non-zeros, inp no multiple of 4, NaN or inf. TypeError: not
                floating point.
        Guarantee: ``dequantize()`` equals the weight (a zero comes back as +0). The two places of a block are
            distinct and ascend; where it has fewer than two non-zeros, the lowest free places fill up.
        """
        weight = check_weight(weight)
        out, inp = weight.shape
        if inp % BLOCK:
            raise ValueError(f"weight must have a multiple of {BLOCK} inputs, got {inp}")
        blocks = weight.reshape(out, -1, BLOCK)
        kept = (blocks != 0).sum(-1)
        if (kept > SLOTS).any():
            row, block = (kept > SLOTS).nonzero()[0].tolist()
            raise ValueError(
                f"weight must have at most 2 non-zeros in each block of 4 inputs; {int((kept > SLOTS).sum())} of "
                f"{kept.numel()} blocks have more, the first in row {row} at input {BLOCK * block}"
            )
        # Stable: the non-zeros first, in their order, then the zeros.
        places = (blocks == 0).to(torch.uint8).argsort(dim=-1, stable=True)[..., :SLOTS].sort(dim=-1).values
        return cls(blocks.gather(-1, places).reshape(out, -1), pack(places, 2))

    @isolated
    def dequantize(self) -> Float[Tensor, "out inp"]:
        """Return the weight (out, inp)."""
        return self.values.new_zeros(self.shape).scatter(1, self.columns, self.values)

    @property
    @isolated
    def columns(self) -> Integer[Tensor, "out slots"]:
        """The column of each value, (out, inp/2) int64: that of its block, and its place there."""
        places = unpack(self.metadata, 2, tuple(self.values.shape))
        slot = torch.arange(self.values.shape[1], device=self.values.device)
        return BLOCK * (slot // SLOTS) + places.long()

    @property
    def shape(self) -> tuple[int, int]:
        """(out, inp) of the weight."""
        return self.values.shape[0], self.values.shape[1] * BLOCK // SLOTS

    @property
    def nbytes(self) -> int:
        """Bytes of values and metadata as they lie in memory."""
        return self.values.nbytes + self.metadata.nbytes

    @property
    def bits_per_weight(self) -> float:
        """``nbytes`` in bits over the number of weights, zeros included."""
        return self.nbytes * 8 / (self.shape[0] * self.shape[1])

    def stored(self) -> Stored:
        """Return values and metadata."""
        tensors = {"values": self.values.contiguous(), "metadata": self.metadata.contiguous()}
        return Stored("two_four", tensors, {"shape": list(self.shape)})

    @classmethod
    def from_stored(cls, stored: Stored, start: int = 0, stop: int | None = None) -> "TwoFour":
        """Return what was stored, or some of its rows."""
        values, metadata = stored.tensors["values"], stored.tensors["metadata"]
        if (start, stop) != (0, None):  # a row may end inside a byte
            places = unpack_planes(metadata, 2, tuple(values.shape), start=start, stop=stop)
            values, metadata = values[start:stop], pack(places, 2)
        return cls(values, metadata)

    @staticmethod
    def by_rows(stored: Stored) -> bool:
        """Return True: each row is a whole number of blocks."""
        return True


@isolated
def two_four_matmul(x: Float[Tensor, "tokens inp"], weight: TwoFour) -> Float[Tensor, "tokens out"]:
    """Return x · Wᵀ from the stored values alone: each gathers its input from x by its 2 bits.

    Args:
        x: (tokens, inp), any float dtype; not modified.
        weight: values and metadata.
    Returns:
        (tokens, out) in the dtype of x, summed in float32 (float64 stays).
    Raises:
        ValueError: x does not fit, holds NaN or inf; a result beyond its dtype.
    Cost: tokens·out·inp/2 multiplications, half of dense, and the products of one token as working memory.
    """
    check_values("x", x)
    if x.ndim != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(f"x must be (tokens, {weight.shape[1]}), got {tuple(x.shape)}")
    dtype = torch.float64 if torch.float64 in (x.dtype, weight.values.dtype) else torch.float32
    values, columns = weight.values.to(dtype), weight.columns
    y = torch.zeros(len(x), len(values), dtype=dtype, device=x.device)
    for t, token in enumerate(x.to(dtype)):
        y[t] = (values * token[columns]).sum(1)
    return narrowed(y, x.dtype)
