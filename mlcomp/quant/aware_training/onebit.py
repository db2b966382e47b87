r"""OneBit: a weight as its signs and two vectors, one bit a weight: the start of OneBit's training.

Notation: W weight (out, inp), $S = \mathrm{sign}(W)$ with sign(0) = 1, $|W| = S \odot W$; g (out,), h (inp,):
$W \approx S \odot g h^\top$, so that $Wx \approx g \odot S(h \odot x)$.
$\lVert W - S \odot g h^\top\rVert_F = \lVert\,|W| - g h^\top\rVert_F$: the best g and h are the first singular
vectors of |W|. Its entries are not negative, so neither are theirs (Perron, Frobenius), and the best factors without
negative entries (NMF of rank one) are the same.
Source: Xu et al. 2024, arXiv:2402.11295, section 3.2 (sign-value-independent decomposition).   Syllabus: 5.04
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mlcomp.checks import check_dtype, check_size, check_weight, check_whole, narrowed
from mlcomp.context import isolated
from mlcomp.formats.packing import pack_planes, packed_nbytes, unpack_planes
from mlcomp.formats.stored import Stored

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class OneBit:
    """A weight as signs and a value for each row and each column.

    Attributes:
        signs: (out, inp) uint8, 1 for +, 0 for −.
        rows: g, (out,), not negative.
        columns: h, (inp,), not negative [g times h: weight units].
    """

    signs: UInt8[Tensor, "out inp"]
    rows: Float[Tensor, " out"]
    columns: Float[Tensor, " inp"]

    @isolated
    def dequantize(self) -> Float[Tensor, "out inp"]:
        """Return the weight (out, inp) that signs and vectors stand for, float32."""
        magnitude = self.rows.float()[:, None] * self.columns.float()
        return torch.where(self.signs == 1, magnitude, -magnitude)

    @property
    def nbytes(self) -> int:
        """Bytes as packed: a bit for each weight, and the vectors in their dtype."""
        return packed_nbytes(self.signs.numel(), 1) + self.rows.nbytes + self.columns.nbytes

    @property
    def bits_per_weight(self) -> float:
        """``nbytes`` in bits over the number of weights."""
        return self.nbytes * 8 / self.signs.numel()

    def stored(self) -> Stored:
        """Return the signs, packed, and the vectors."""
        tensors = {"signs": pack_planes(self.signs, 1), "rows": self.rows, "columns": self.columns}
        return Stored("onebit", tensors, {"shape": list(self.signs.shape)})

    @classmethod
    def from_stored(cls, stored: Stored, start: int = 0, stop: int | None = None) -> "OneBit":
        """Return what was stored, or some of its rows."""
        signs = unpack_planes(stored.tensors["signs"], 1, stored.shape, start=start, stop=stop)
        return cls(signs, stored.tensors["rows"][start:stop], stored.tensors["columns"])

    @staticmethod
    def by_rows(stored: Stored) -> bool:
        """Return True: each row has its own signs and value."""
        return True


@isolated
def onebit_decompose(
    weight: Float[Tensor, "out inp"], *, dtype: torch.dtype = torch.float16, max_steps: int = 100
) -> OneBit:
    r"""Split a weight into signs and the rank-one matrix nearest to its magnitudes, by power iteration.

    $h \leftarrow |W|^\top g / \lVert |W|^\top g\rVert$, $g \leftarrow |W| h$, from ones.

    Args:
        weight: (out, inp), any float dtype, computed in float64; not modified.
        dtype: that the vectors are stored in: float16, bfloat16 or float32.
        max_steps: power iterations at the most; they end when h moves by less than 1e-9.
    Returns:
        Signs and vectors: 1 bit a weight, and 16·(out + inp) bits.
    Raises:
        ValueError: malformed weight, NaN or inf, max_steps below 1; a weight too large or too small
            for ``dtype``. TypeError: another dtype.
    Guarantee: before the vectors are rounded to ``dtype``, no g and h of any sign fit |W| better (to the iteration's
        accuracy). A row or column of zeros decodes to zeros.
    Cost: 4·out·inp FLOPs a step; ten steps are enough for the layers of a language model.
    Deviations: the vectors are found by power iteration on |W|, where the paper names SVD and NMF: all three agree.
    """
    weight = check_weight(weight)
    check_size("weight", weight)
    check_dtype("dtype", dtype, DTYPES)
    check_whole("max_steps", max_steps, 1)
    magnitude = weight.double().abs()
    largest = magnitude.max()
    unit = torch.where(largest > 0, largest, torch.ones_like(largest))
    magnitude = magnitude / unit
    g, h = torch.ones_like(magnitude[:, 0]), torch.zeros_like(magnitude[0])
    for _ in range(max_steps):
        before, h = h, magnitude.T @ g
        h = h / h.norm().clamp(min=torch.finfo(h.dtype).tiny)
        g = magnitude @ h
        if float((h - before).norm()) < 1e-9:
            break
    length = g.norm()  # the first singular value: both vectors get its root, so both fit a narrow dtype
    root = torch.where(length > 0, length, torch.ones_like(length)).sqrt()
    rows, columns = (narrowed(v * unit.sqrt(), dtype) for v in (g / root, h * root))
    least = float(torch.minimum(rows.max(), columns.max()))
    if float(largest) > 0 and least < torch.finfo(dtype).tiny:
        raise ValueError(f"vectors up to {least:.3g} lose their digits in {dtype}: pass dtype=torch.float32")
    return OneBit((weight >= 0).to(torch.uint8), rows, columns)
