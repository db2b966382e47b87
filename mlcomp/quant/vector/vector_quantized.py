r"""The result of every vector quantizer of the course: codes, codebooks, and the honest size.

Notation: a weight is cut into N vectors of d consecutive inputs; a vector has B codes $b_1 \dots b_B$, one into each
of B codebooks $C_1 \dots C_B$ of K entries.   Syllabus: 1.07
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from mlcomp.checks import check_choice, check_divides, check_weight
from mlcomp.context import isolated
from mlcomp.formats.packing import pack_planes, packed_nbytes, unpack_planes
from mlcomp.formats.stored import Stored


@dataclass(frozen=True)
class VectorQuantized:
    r"""A weight as codes of vectors.

    Attributes:
        codes: (vectors, books) int32, each 0 … K − 1, vectors row by row.
        codebooks: (books, entries, width) [weight units].
        shape: (out, inp).
        combine: "sum": a vector is $C_1[b_1] + \dots + C_B[b_B]$, and width is d; "concatenate": it is the entries
            one after the other, and width is d / B. With one book both are the same.
    """

    codes: Int32[Tensor, "vectors books"]
    codebooks: Float[Tensor, "books entries width"]
    shape: tuple[int, int]
    combine: str

    @isolated
    def dequantize(self) -> Float[Tensor, "out inp"]:
        """Return the weight (out, inp) that the codes stand for, in the dtype of the codebooks."""
        parts = [book[self.codes[:, b].long()] for b, book in enumerate(self.codebooks)]
        vectors = torch.cat(parts, dim=1) if self.combine == "concatenate" else sum(parts)
        return vectors.reshape(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes as packed: ⌈log₂ K⌉ bits a code, and the codebooks in their dtype."""
        return packed_nbytes(self.codes.numel(), (self.codebooks.shape[1] - 1).bit_length()) + self.codebooks.nbytes

    @property
    def bits_per_weight(self) -> float:
        """``nbytes`` in bits over the number of weights."""
        return self.nbytes * 8 / (self.shape[0] * self.shape[1])

    def stored(self) -> Stored:
        """Return the codes, packed, and the codebooks."""
        codes = pack_planes(self.codes, (self.codebooks.shape[1] - 1).bit_length())
        facts = {"shape": list(self.shape), "combine": self.combine}
        return Stored("vector", {"codes": codes, "codebooks": self.codebooks.contiguous()}, facts)

    @classmethod
    def from_stored(cls, stored: Stored, start: int = 0, stop: int | None = None) -> "VectorQuantized":
        """Return what was stored, or some of its rows."""
        books, combine = stored.tensors["codebooks"], stored.facts["combine"]
        check_choice("combine", combine, ("sum", "concatenate"))
        (out, inp), dim = stored.shape, books.shape[2] * (len(books) if combine == "concatenate" else 1)
        stop = out if stop is None else stop
        shape, bits = (out, inp // dim, len(books)), (books.shape[1] - 1).bit_length()
        codes = unpack_planes(stored.tensors["codes"], bits, shape, start=start, stop=stop)
        return cls(codes.flatten(0, 1).to(torch.int32), books, (stop - start, inp), combine)

    @staticmethod
    def by_rows(stored: Stored) -> bool:
        """Return True: each row is a whole number of vectors."""
        return True


def to_vectors(weight: Float[Tensor, "out inp"], dim: int) -> Float[Tensor, "vectors dim"]:
    """Cut each row into vectors of ``dim`` consecutive inputs, float32 (float64 stays).

    Raises:
        ValueError: malformed weight, dim does not divide the inputs.
    """
    weight = check_weight(weight)
    check_divides("dim", dim, weight.shape[1])
    return (weight if weight.dtype == torch.float64 else weight.float()).reshape(-1, dim)
