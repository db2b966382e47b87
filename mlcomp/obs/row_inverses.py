r"""The inverse Hessians of many rows at once, from which each row eliminates columns in its own order.

Notation: d inputs, R rows of a batch, $B = H^{-1}$ over the columns a row still has, v an elimination vector.
Eliminating column p (the lecture's lemma) subtracts $v v^\top$ with $v = B_{:,p} / \sqrt{B_{pp}}$, so the vectors
of a row are the columns of a Cholesky factor of $H^{-1}$ whose pivots come in the row's own order. Algorithm 1 as
printed is the right-looking factorization: every step rewrites d² numbers. Here the vectors are kept, and only the
one column that a step needs is brought up to date. Every BLOCK steps the vectors are folded into the matrices by one
matrix product, as in the blocked factorization of LAPACK, and now and then the eliminated columns are dropped. The
arithmetic is that of Algorithm 1 in another order.
Source: Frantar, Singh, Alistarh 2022, arXiv:2208.11580, lemma 1 and algorithm 1; blocked Cholesky: Golub and
Van Loan, Matrix Computations, section 4.2.   Syllabus: 2.05
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Vectors kept before they are folded: enough for an efficient matrix product, few enough to stay in the cache.
BLOCK = 32
# Compact when the columns that are left are this share of those stored: a copy costs about 40 folds.
SHRINK = 0.75
# Relative difference of a row's loss, as its steps add up and as it is, beyond which it is done again in float64: of
# well-conditioned rows both agree in three or more digits.
AGREE = 0.01


def working_dtype(weight: Tensor, hessian: Tensor) -> torch.dtype:
    """Return the dtype in which rows choose what comes next: float32, unless W or H is float64."""
    return torch.float64 if torch.float64 in (weight.dtype, hessian.dtype) else torch.float32


def power_of_two(x: Tensor) -> float:
    """Return the power of two next to a number; 1 if that is not positive."""
    return 2.0 ** round(math.log2(float(x))) if float(x) > 0 else 1.0


def rows_per_batch(inp: int, out: int, max_bytes: int, *, extra: int = 0, dtype: torch.dtype = torch.float64) -> int:
    """Return how many rows fit into ``max_bytes`` of working memory; never more than ``out``.

    A row needs its matrix twice, the vectors, and about 24 + ``extra`` vectors of state.

    Raises:
        ValueError: not even one row fits; the message says how much one row needs.
    """
    each = dtype.itemsize * inp * (2 * inp + BLOCK + 24 + extra)
    if max_bytes < each:
        raise ValueError(f"max_bytes={max_bytes} is less than the {each} bytes that one row of {inp} inputs needs")
    return min(out, max_bytes // each)


class RowInverses:
    """Working state of up to ``rows`` rows; all rows have eliminated the same number of columns.

    Attributes:
        index: (R, a) the original column of each of the a positions that are stored, ascending.
    """

    _used: int  # vectors that are not folded yet

    def __init__(self, inverse: Float[Tensor, "d d"], diagonal: Float[Tensor, " d"], rows: int):
        """Take the inverse Hessian that all rows start from, and the diagonal of the Hessian itself."""
        d = len(inverse)
        self._inverse = inverse
        # [H⁻¹ over any set of columns]_pp ≥ 1/H_pp: a floor that keeps rounding from making a pivot negative.
        self._floor = (1 / diagonal).to(inverse.dtype)
        self._store = inverse.new_empty(rows * d * d)
        self._spare = inverse.new_empty(rows * d * d)
        self._vectors = inverse.new_empty(rows * BLOCK * d)
        self.reset(rows)

    def reset(self, rows: int) -> None:
        """Start again with ``rows`` rows that have eliminated nothing, in the memory that is there."""
        d = len(self._inverse)
        self.index = torch.arange(d, device=self._inverse.device).repeat(rows, 1)
        self._shape(rows, d)
        self._matrix.copy_(self._inverse)

    def eliminate(self, position: Int[Tensor, " R"]) -> tuple[Float[Tensor, "R a"], Float[Tensor, "R 1"]]:
        r"""Eliminate one column in each row; return $v$ (valid until the next call) and $\sqrt{B_{pp}}$.

        Cost: O(a·BLOCK) per row, and once in BLOCK calls a matrix product of 2·a²·BLOCK FLOPs.
        """
        vectors, roots = self.eliminate_run(position, 1)
        return vectors[:, 0], roots

    def eliminate_run(
        self, position: Int[Tensor, " R"], count: int
    ) -> tuple[Float[Tensor, "R c a"], Float[Tensor, "R c"]]:
        r"""Eliminate ``count`` ≤ BLOCK columns from ``position`` on in each row, one after the other.

        Returns:
            Their $v$ (valid until the next call) and $\sqrt{B_{pp}}$. They are read from memory all at once.
        """
        if self._used + count > BLOCK:
            self._fold()
        rows, width = self.index.shape
        used = self._used
        at = position[:, None] + torch.arange(count, device=position.device)
        flat = (self._first[:, None] + at).flatten()
        columns = self._matrix.view(rows * width, width).index_select(0, flat).view(rows, count, width)
        if used:
            recent = self._recent[:, :used]
            share = recent.gather(2, at[:, None].expand(-1, used, -1))
            columns = torch.baddbmm(columns, share.mT, recent, alpha=-1)
        floor = self._floor[self.index.gather(1, at)]
        vectors = self._recent[:, used : used + count]
        roots = []
        for i in range(count):
            column, here = columns[:, i], at[:, i, None]
            for j in range(i):  # what this run has eliminated
                column.addcmul_(vectors[:, j], vectors[:, j].gather(1, here), value=-1)
            roots.append(torch.maximum(column.gather(1, here), floor[:, i, None]).sqrt())
            torch.div(column, roots[i], out=vectors[:, i])
        self._used += count
        return vectors, torch.cat(roots, 1)

    def compact(self, keep: Int[Tensor, "R b"]) -> None:
        """Store only the positions ``keep``, ascending, of each row; the others can't be asked for any more."""
        rows, width = self.index.shape
        size, used = keep.shape[1], self._used
        recent = self._recent[:, :used].gather(2, keep[:, None].expand(-1, used, -1))  # folded when they are BLOCK
        kept_rows = self._spare[: rows * size * width]
        flat = (keep + self._first[:, None]).flatten()
        torch.index_select(self._matrix.view(rows * width, width), 0, flat, out=kept_rows.view(-1, width))
        self.index = self.index.gather(1, keep)
        self._shape(rows, size)
        columns = keep[:, None, :].expand(-1, size, -1)
        torch.gather(kept_rows.view(rows, size, width), 2, columns, out=self._matrix)
        self._recent[:, :used] = recent
        self._used = used

    def _shape(self, rows: int, width: int) -> None:
        self._matrix = self._store[: rows * width * width].view(rows, width, width)
        self._recent = self._vectors[: rows * BLOCK * width].view(rows, BLOCK, width)
        self._first = torch.arange(rows, device=self._store.device) * width
        self._used = 0

    def _fold(self) -> None:
        recent = self._recent[:, : self._used]
        self._matrix.baddbmm_(recent.mT, recent, alpha=-1)
        self._used = 0
