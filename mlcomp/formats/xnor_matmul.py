r"""The product of two matrices of signs, from packed bits by XOR and population count.

Notation: a, b vectors of n signs ±1, each stored as n bits (1 for +1). They differ at popcount(a xor b) places, so
$a \cdot b = n - 2\,\mathrm{popcount}(a \oplus b)$. (With XNOR, which counts the places that agree, it is
$2\,\mathrm{popcount} - n$.)
Source: Courbariaux et al. 2016, arXiv:1602.02830, section 4.   Syllabus: 4.03
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int32, UInt8
from torch import Tensor

from mlcomp.checks import check_finite, check_floating, check_whole
from mlcomp.context import isolated
from mlcomp.formats.packing import pack, unpack

CHUNK = 2**24  # differing bytes held at a time


@dataclass(frozen=True)
class PackedSigns:
    """A matrix of signs, a bit each.

    Attributes:
        packed: (rows, ⌈columns/8⌉) uint8, the first column in the lowest bit; the unused bits of a row are 0.
        columns: how many of the bits of a row are signs.
    """

    packed: UInt8[Tensor, "rows nbytes"]
    columns: int

    @isolated
    def signs(self) -> Float[Tensor, "rows columns"]:
        """Return the signs as float32, 1 and −1."""
        rows, nbytes = self.packed.shape
        bits = unpack(self.packed.reshape(-1), 1, (rows, 8 * nbytes))[:, : self.columns]
        return bits.float() * 2 - 1

    @property
    def nbytes(self) -> int:
        """Bytes as packed."""
        return self.packed.nbytes


@isolated
def pack_signs(x: Float[Tensor, "rows columns"]) -> PackedSigns:
    """Pack the signs of a matrix; 0 counts as positive.

    Args:
        x: (rows, columns) with at least one column, any float dtype; not modified.
    Raises:
        ValueError: not a matrix, no column, NaN or inf. TypeError: not floating point.
    Guarantee: ``signs`` returns 1 where x ≥ 0 and −1 elsewhere, for any number of columns.
    """
    check_floating("x", x)
    check_finite("x", x)
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"x must be a matrix (rows, columns) with at least one column, got shape {tuple(x.shape)}")
    rows, columns = x.shape
    bits = torch.nn.functional.pad((x.detach() >= 0).to(torch.uint8), (0, -columns % 8))
    return PackedSigns(pack(bits, 1).reshape(rows, -(-columns // 8)), columns)


@isolated
def xnor_matmul(x: PackedSigns, weight: PackedSigns) -> Int32[Tensor, "rows out"]:
    """Return x · weightᵀ of two matrices of signs.

    Args:
        x: (rows, columns). weight: (out, columns).
    Returns:
        (rows, out) whole numbers from −columns to columns, as odd or even as columns.
    Raises:
        ValueError: different numbers of columns, or packed matrices that are none. TypeError: not packed signs.
    Guarantee: exact, for any number of columns. The unused bits of both are 0 and do not differ.
    Cost: an XOR and a look-up for every 8 products; this is the readable version, and no faster than floating point.
    """
    for name, matrix in (("x", x), ("weight", weight)):
        check_packed(name, matrix)
    if x.columns != weight.columns:
        raise ValueError(f"x has {x.columns} columns and weight {weight.columns}: they must agree")
    ones = torch.arange(256, device=x.packed.device)
    count = sum((ones >> bit) & 1 for bit in range(8)).to(torch.uint8)  # type: ignore[union-attr]
    step = max(1, CHUNK // max(1, weight.packed.numel()))
    differing = [
        count[(part[:, None] ^ weight.packed).int()].sum(2, dtype=torch.int32) for part in x.packed.split(step)
    ]
    return x.columns - 2 * torch.cat(differing)


def check_packed(name: str, matrix: PackedSigns) -> None:
    """Raise unless ``matrix`` is what :func:`pack_signs` makes."""
    if not isinstance(matrix, PackedSigns):
        raise TypeError(f"{name} must come from pack_signs, got {type(matrix).__name__}")
    check_whole(f"{name}.columns", matrix.columns, 1)
    packed = matrix.packed
    if packed.dtype != torch.uint8 or packed.ndim != 2 or packed.shape[1] != -(-matrix.columns // 8):
        raise ValueError(
            f"{name}.packed must be (rows, {-(-matrix.columns // 8)}) uint8 for {matrix.columns} columns, got "
            f"{packed.dtype} {tuple(packed.shape)}"
        )
