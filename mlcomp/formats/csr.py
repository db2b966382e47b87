r"""Compressed sparse rows (CSR): the kept weights row by row, the column of each, and where each row begins.

Notation: W weight (out, inp), nnz weights that are not zero; row n holds the values $p_n, \dots, p_{n+1} - 1$ of the
list, so $y_n = \sum_{i=p_n}^{p_{n+1}-1} v_i\, x_{c_i}$. A column index of 32 bits beside a 16-bit value is the
lecture's overhead of 200 %: the format is smaller than dense from 66.7 % zeros on.
Source: Zhu and Gupta 2017, arXiv:1710.01878 (what bit-mask and CSR cost).   Syllabus: 3.06
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from mlcomp.checks import check_codes, check_floating, check_tensor, check_values, check_weight, narrowed
from mlcomp.context import isolated
from mlcomp.formats.stored import Stored


@dataclass(frozen=True)
class CSR:
    """A weight (out, inp) as its non-zero values, row by row, with their columns.

    Attributes:
        values: (nnz,) in the weight's own dtype.
        columns: (nnz,) int32, the column of each value, ascending within a row.
        pointers: (out + 1,) int32: row n has the values pointers[n] … pointers[n + 1] − 1.
        shape: (out, inp).
    """

    values: Float[Tensor, " nnz"]
    columns: Int32[Tensor, " nnz"]
    pointers: Int32[Tensor, " starts"]
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        """Raise ValueError or TypeError unless the parts fit each other."""
        check_floating("values", self.values)
        out, inp = self.shape
        for name, part, length in (("columns", self.columns, len(self.values)), ("pointers", self.pointers, out + 1)):
            check_tensor(name, part)
            if part.dtype != torch.int32 or part.shape != (length,):
                raise ValueError(f"{name} must be int32 ({length},), got {part.dtype} {tuple(part.shape)}")
        check_codes("columns", self.columns, inp - 1)
        first, last = int(self.pointers[0]), int(self.pointers[-1])
        if (first, last) != (0, len(self.values)) or (self.pointers.diff() < 0).any():
            raise ValueError(f"pointers must not fall, from 0 to the {len(self.values)} values; got {first} … {last}")

    @classmethod
    @isolated
    def from_dense(cls, weight: Float[Tensor, "out inp"]) -> "CSR":
        """Store a matrix without its zeros.

        Args:
            weight: (out, inp), any float dtype; not modified.
        Raises:
            ValueError: NaN or inf in weight, or no entry. TypeError: not floating point.
        Guarantee: ``dequantize()`` equals the weight (a zero comes back as +0).
        """
        weight = check_weight(weight)
        row, column = weight.nonzero(as_tuple=True)
        pointers = torch.zeros(len(weight) + 1, dtype=torch.int32, device=weight.device)
        pointers[1:] = weight.count_nonzero(dim=1).cumsum(0)
        return cls(weight[row, column], column.to(torch.int32), pointers, (weight.shape[0], weight.shape[1]))

    @isolated
    def dequantize(self) -> Float[Tensor, "out inp"]:
        """Return the weight (out, inp)."""
        weight = self.values.new_zeros(self.shape)
        weight[self.rows, self.columns.long()] = self.values
        return weight

    @property
    @isolated
    def rows(self) -> Tensor:
        """The row of each value, (nnz,) int64: not stored, the pointers tell it."""
        return torch.arange(self.shape[0], device=self.pointers.device).repeat_interleave(self.pointers.diff())

    @property
    def nbytes(self) -> int:
        """Bytes of values, columns and pointers as they lie in memory."""
        return self.values.nbytes + self.columns.nbytes + self.pointers.nbytes

    @property
    def bits_per_weight(self) -> float:
        """``nbytes`` in bits over the number of weights, zeros included."""
        return self.nbytes * 8 / (self.shape[0] * self.shape[1])

    def stored(self) -> Stored:
        """Return values, columns and pointers."""
        parts = {"values": self.values, "columns": self.columns, "pointers": self.pointers}
        tensors = {name: part.contiguous() for name, part in parts.items()}
        return Stored("csr", tensors, {"shape": list(self.shape)})

    @classmethod
    def from_stored(cls, stored: Stored, start: int = 0, stop: int | None = None) -> "CSR":
        """Return what was stored, or some of its rows."""
        values, columns, pointers = (stored.tensors[name] for name in ("values", "columns", "pointers"))
        out, inp = stored.shape
        stop = out if stop is None else stop
        first, last = int(pointers[start]), int(pointers[stop])
        return cls(values[first:last], columns[first:last], pointers[start : stop + 1] - first, (stop - start, inp))

    @staticmethod
    def by_rows(stored: Stored) -> bool:
        """Return True: the pointers say where a row begins."""
        return True


@isolated
def csr_matmul(x: Float[Tensor, "tokens inp"], weight: CSR) -> Float[Tensor, "tokens out"]:
    """Return x · Wᵀ from the stored values alone: each takes its input from x, and each row sums its products.

    Args:
        x: (tokens, inp), any float dtype; not modified.
        weight: values, columns and pointers.
    Returns:
        (tokens, out) in the dtype of x, summed in float32 (float64 stays), a value after the other.
    Raises:
        ValueError: x does not fit, holds NaN or inf; a result beyond its dtype.
    Cost: tokens·nnz multiplications, and the products of one token as working memory.
    """
    check_values("x", x)
    out, inp = weight.shape
    if x.ndim != 2 or x.shape[1] != inp:
        raise ValueError(f"x must be (tokens, {inp}), got {tuple(x.shape)}")
    dtype = torch.float64 if torch.float64 in (x.dtype, weight.values.dtype) else torch.float32
    values, columns, rows = weight.values.to(dtype), weight.columns.long(), weight.rows
    y = torch.zeros(len(x), out, dtype=dtype, device=x.device)
    for t, token in enumerate(x.to(dtype)):
        y[t].index_add_(0, rows, values * token[columns])
    return narrowed(y, x.dtype)
