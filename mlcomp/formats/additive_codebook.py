r"""Weights as sums of codebook entries: the storage format of AQLM, decoded and multiplied.

Notation: d consecutive inputs of a row are a group j; $W_{n,\,jd:(j+1)d} = s_n \sum_{c=1}^{M} C_c[b_{njc}]$ with M
codebooks $C_c$ of E ≤ 256 vectors of length d, codes b of ⌈log₂ E⌉ bits, and a scale $s_n$ for each row.
Source: Egiazarian et al. 2024, arXiv:2401.06118, section 3.   Syllabus: 1.13
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mlcomp.checks import check_floating, check_tensor, check_values, narrowed
from mlcomp.context import isolated
from mlcomp.formats.packing import pack_planes, packed_nbytes, unpack_planes
from mlcomp.formats.stored import Stored


@dataclass(frozen=True)
class AdditiveCodes:
    """A weight (out, groups·dim) as codes into additive codebooks.

    Attributes:
        codes: (out, groups, books) uint8.
        codebooks: (books, entries, dim), entries ≤ 256.
        scale: (out,) [weight units of the codebooks].
    """

    codes: UInt8[Tensor, "out groups books"]
    codebooks: Float[Tensor, "books entries dim"]
    scale: Float[Tensor, " out"]

    def __post_init__(self) -> None:
        """Raise ValueError or TypeError unless the parts fit each other."""
        check_tensor("codes", self.codes)
        check_floating("codebooks", self.codebooks)
        check_floating("scale", self.scale)
        if self.codes.dtype != torch.uint8 or self.codes.ndim != 3 or self.codes.numel() == 0:
            raise TypeError(
                f"codes must be uint8 (out, groups, books), got {self.codes.dtype} {tuple(self.codes.shape)}"
            )
        if self.codebooks.ndim != 3 or len(self.codebooks) != self.codes.shape[2] or self.codebooks.shape[1] > 256:
            books = self.codes.shape[2]
            raise ValueError(f"codebooks must be ({books}, ≤256, dim), got {tuple(self.codebooks.shape)}")
        if self.scale.shape != (len(self.codes),):
            raise ValueError(f"scale must be ({len(self.codes)},), one a row, got {tuple(self.scale.shape)}")

    @property
    def inp(self) -> int:
        """Inputs: groups times the length of an entry."""
        return self.codes.shape[1] * self.codebooks.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes as packed by :func:`mlcomp.formats.pack`: ⌈log₂ entries⌉ bits a code, the rest in its own dtype.

        The kernels read codes of a whole byte: in memory they take the same for 256 entries, more for fewer.
        """
        code_bits = (self.codebooks.shape[1] - 1).bit_length()
        return packed_nbytes(self.codes.numel(), code_bits) + self.codebooks.nbytes + self.scale.nbytes

    @property
    def bits_per_weight(self) -> float:
        """``nbytes`` in bits over the number of weights, codebooks and scales included."""
        return self.nbytes * 8 / (len(self.codes) * self.inp)

    @isolated
    def dequantize(self) -> Float[Tensor, "out inp"]:
        """Return the weight (out, inp), see :func:`additive_decode`."""
        return additive_decode(self)

    def stored(self) -> Stored:
        """Return the codes, packed, codebooks and scales."""
        codes = pack_planes(self.codes, (self.codebooks.shape[1] - 1).bit_length())
        tensors = {"codes": codes, "codebooks": self.codebooks.contiguous(), "scale": self.scale.contiguous()}
        return Stored("additive", tensors, {"shape": [len(self.codes), self.inp]})

    @classmethod
    def from_stored(cls, stored: Stored, start: int = 0, stop: int | None = None) -> "AdditiveCodes":
        """Return what was stored, or some of its rows."""
        tensors, (out, inp) = stored.tensors, stored.shape
        books, entries, dim = tensors["codebooks"].shape
        shape = (out, inp // dim, books)
        codes = unpack_planes(tensors["codes"], (entries - 1).bit_length(), shape, start=start, stop=stop)
        return cls(codes, tensors["codebooks"], tensors["scale"][start:stop])

    @staticmethod
    def by_rows(stored: Stored) -> bool:
        """Return True: each row has its own codes and scale."""
        return True


@isolated
def additive_decode(weight: AdditiveCodes) -> Float[Tensor, "out inp"]:
    """Return the weight (out, inp) in the dtype of the codebooks, summed in float32 (float64 stays).

    Raises:
        IndexError: a code outside its codebook. ValueError: a weight beyond the dtype of the codebooks.
    """
    books = weight.codebooks if weight.codebooks.dtype == torch.float64 else weight.codebooks.float()
    total = sum((books[c][weight.codes[:, :, c].long()] for c in range(len(books))), start=books.new_zeros(()))
    return narrowed(total.flatten(1) * weight.scale.to(total)[:, None], weight.codebooks.dtype)


@isolated
def additive_matvec(x: Float[Tensor, " inp"], weight: AdditiveCodes) -> Float[Tensor, " out"]:
    """Return W x without decoding W: all products of entries with pieces of x once, then a sum of look-ups.

    Args:
        x: (inp,), any float dtype; not modified.
        weight: codes, codebooks and scales.
    Returns:
        (out,) in the dtype of x, summed in float32 (float64 stays).
    Raises:
        ValueError: x does not fit, holds NaN or inf; a result beyond its dtype.
            IndexError: a code outside its codebook.
    Cost: inp·entries·books multiplications for the table, then out·groups·books look-ups and additions.
    """
    check_values("x", x)
    if x.shape != (weight.inp,):
        raise ValueError(f"x must be ({weight.inp},), got {tuple(x.shape)}")
    dtype = torch.float64 if torch.float64 in (x.dtype, weight.codebooks.dtype) else torch.float32
    out, groups, books = weight.codes.shape
    table = torch.einsum("ced,gd->gce", weight.codebooks.to(dtype), x.to(dtype).reshape(groups, -1))
    flat = table.reshape(groups * books, -1)
    rows = torch.arange(groups * books, device=x.device)
    sums = flat[rows, weight.codes.reshape(out, -1).long()].sum(1)
    return narrowed(sums * weight.scale.to(dtype), x.dtype)
