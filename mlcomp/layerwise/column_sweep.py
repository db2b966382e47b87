r"""The sweep that GPTQ and SparseGPT share: fix one column, let the columns after it make up for the error.

Notation: W weight (out, inp), $H = 2XX^\top$, U the upper Cholesky factor of the inverse, $H^{-1} = U^\top U$.
When columns leave in a fixed order, row i of U holds all that OBS needs at step i: with F the columns i and later,
$[H_F^{-1}]_{ii} = U_{ii}^2$ and $[H_F^{-1}]_{ij} = U_{ii}U_{ij}$. A column that changes from w to q therefore makes
the error $e = (w - q)/U_{ii}$, adds $\tfrac12 e^2$ to the loss, and moves each later column j by $-e\,U_{ij}$.
Source: Frantar et al. 2023, GPTQ, arXiv:2210.17323, section 3.3, steps 2 and 3.   Syllabus: 2.05, 2.08, 3.11
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mlcomp.checks import check_choice, check_hessian, check_whole
from mlcomp.context import isolated
from mlcomp.layerwise.hessian import check_regular, computed_once, damped_hessian

# How the columns may be ordered; "activation" and "ascending" sort by the diagonal of H, large or small inputs first.
ORDERS = ("natural", "activation", "ascending")
# Columns that an error reaches at once, within a block: few enough to lie in the cache nearest to the processor.
PART = 16
# Rows of the factor that are found together: on a CPU they lie in a cache; a GPU wants few launches.
PANEL, GPU_PANEL = 96, 1024


def check_sweep(order: str, block_size: int) -> None:
    """Raise unless ``order`` is one of ORDERS and ``block_size`` a whole number ≥ 1."""
    check_choice("order", order, ORDERS)
    check_whole("block_size", block_size, 1)


@isolated
def column_order(hessian: Float[Tensor, "inp inp"], order: str) -> Int[Tensor, " inp"]:
    """Return the columns in the order in which they are fixed; equal diagonals keep their natural order."""
    check_hessian(hessian)
    check_choice("order", order, ORDERS)
    if order == "natural":
        return torch.arange(len(hessian), device=hessian.device)
    return hessian.diagonal().argsort(descending=order == "activation", stable=True)


@isolated
def inverse_factor(
    hessian: Float[Tensor, "inp inp"], columns: Int[Tensor, " inp"], *, damp: float
) -> tuple[Float[Tensor, "inp inp"], Bool[Tensor, " inp"]]:
    r"""Return U (float64), $U^\top U = (H + \lambda I)^{-1}$ reordered, and the dead inputs, not reordered.

    With $H = RR^\top$, R upper triangular (a Cholesky factorization from the last column to the first), $U = R^{-1}$.

    Raises:
        ValueError: as :func:`mlcomp.layerwise.inverse_hessian`.
    Cost: about 2/3·inp³ FLOPs.
    """
    factor, dead = computed_once(
        hessian, ("factor", damp, tuple(columns.tolist())), lambda: _inverse_factor(hessian, columns, damp)
    )
    return factor, dead


def _inverse_factor(hessian: Tensor, columns: Tensor, damp: float) -> tuple[Tensor, Tensor]:
    damped = damped_hessian(hessian, damp=damp)
    matrix, dead, diagonal = damped.matrix, damped.dead, damped.matrix.diagonal().clone()
    del damped  # before others of its size are made
    if not torch.equal(columns, torch.arange(len(columns), device=columns.device)):
        for rows in matrix.split(PANEL):  # in place, for a second matrix would be as large as all else together
            rows.copy_(rows[:, columns])
        for some in matrix.split(PANEL, dim=1):
            some.copy_(some[columns])
    factor = inverse_root(matrix, PANEL if matrix.device.type == "cpu" else GPU_PANEL)
    del matrix
    inverse = None  # its diagonal, not reordered
    if factor is not None:
        squares = (rows.square().sum(0) for rows in factor.split(PANEL))
        inverse = torch.stack(list(squares)).sum(0)[columns.argsort()]
    check_regular(diagonal, inverse, damp=damp, dtype=hessian.dtype)
    assert factor is not None
    return factor, dead


def inverse_root(matrix: Float[Tensor, "n n"], panel: int) -> Float[Tensor, "n n"] | None:
    r"""Make of M, in place, the upper triangular U with $U^\top U = M^{-1}$; None if M is not positive definite.

    ``panel`` rows of U at a time, from the last. With A their part of the diagonal of M, B what is right of A, and V
    what is found of U: in $M = RR^\top$, R has there the root of $A - XX^\top$, and right of it $X = BV^\top$.
    So $U = R^{-1}$ has the inverse T of that root, and right of it $-TXV$. Products skip the zeros of V.

    Cost: about 2/3·n³ FLOPs, nearly all of it in matrix products, and the memory of two panels.
    """
    n = len(matrix)
    # Made once: in a heap, pieces that grow from panel to panel would each find all holes too small.
    products, moved = (matrix.new_empty(min(panel, n) * n) for _ in range(2))
    for first in reversed(range(0, n, panel)):
        last = min(first + panel, n)
        later = [(start, min(start + panel, n)) for start in range(last, n, panel)]
        x, y = (some[: (last - first) * (n - last)].view(last - first, n - last) for some in (products, moved))
        for start, end in later:  # the rows below are those of U
            torch.mm(matrix[first:last, start:], matrix[start:end, start:].T, out=x[:, start - last : end - last])
        # torch finds lower triangular roots: this is one with rows and columns reversed.
        root, failed = torch.linalg.cholesky_ex((matrix[first:last, first:last] - x @ x.T).flip(0, 1))
        if int(failed):
            return None
        own = matrix[first:last, first:last]
        one = torch.eye(last - first, dtype=matrix.dtype, device=matrix.device)
        own.copy_(torch.linalg.solve_triangular(root.flip(0, 1), one, upper=True))
        torch.mm(own, x, out=y).neg_()
        matrix[first:last, :first] = 0
        for start, end in later:
            torch.mm(y[:, : end - last], matrix[last:end, start:end], out=matrix[first:last, start:end])
    return matrix


def in_order(weight: Float[Tensor, "inp out"], columns: Int[Tensor, " inp"] | None) -> Float[Tensor, "inp out"]:
    """Return a float64 copy of the transposed weight, its rows in this order; None: as they are."""
    result = torch.empty(weight.shape, dtype=torch.float64, device=weight.device)
    if columns is None:
        return result.copy_(weight)
    for first in range(0, len(weight), PANEL):  # some at a time, for the gathered ones are a copy of their own
        result[first : first + PANEL] = weight[columns[first : first + PANEL]]
    return result


class ColumnSweep:
    """The columns of W, fixed one after the other; the errors of a block reach the columns after it all at once.

    The caller goes through the columns in order: ``now`` shows them as they stand, ``column`` the next one alone, and
    ``fix`` ends its turn.

    Guarantee: ``block_size`` changes the result by float64 rounding only.
    Cost: 2·out·inp² FLOPs, nearly all of it in matrix products.
    """

    @isolated
    def __init__(
        self,
        weight: Float[Tensor, "inp out"],
        factor: Float[Tensor, "inp inp"],
        *,
        block_size: int,
        columns: Int[Tensor, " inp"] | None = None,
        inplace: bool = False,
    ) -> None:
        """Begin a sweep.

        Args:
            weight: (inp, out), the transposed weight, of any float dtype; not modified. What is worked on is float64,
                a column a contiguous row.
            factor: U, (inp, inp), its rows and columns in the order of the sweep.
            block_size: columns whose errors are collected before the columns after the block are rewritten.
            columns: in which order those of ``weight`` are fixed. None: as they are.
            inplace: work on ``weight`` itself, which is float64, contiguous and in order; a row of it is the caller's
                again once it is fixed.
        """
        self._factor, self._pivots = factor, factor.diagonal().tolist()
        self._columns = weight if inplace else in_order(weight, columns)
        # A block is cut once more: an error moves the few columns of its own part at once, those after it when the
        # part ends. Each start is that of the block, or part, under way. Errors are kept until their block ends.
        self._block_size, self._part_size = block_size, min(PART, block_size)
        self._block = self._part = self._next = 0
        self._errors = torch.empty_like(self._columns[:block_size])
        self._ends()

    def _ends(self) -> None:
        """Find where the block and the part end that begin with, or hold, the next column."""
        inp = len(self._columns)
        self._block_end = min(self._block + self._block_size, inp)
        self._part_end = min(self._part + self._part_size, self._block_end)

    @isolated
    def now(self, a: int, b: int) -> Float[Tensor, "columns out"]:
        """Return columns a … b − 1 as the columns fixed so far have left them; none of them may be fixed itself."""
        columns = self._columns[a:b].clone()
        for start, first, last in (
            (self._part, self._part_end, self._block_end),
            (self._block, self._block_end, len(self._columns)),
        ):
            first, last = max(first, a), min(last, b)
            if first < last and start < self._next:  # errors on their way to these columns
                errors = self._errors[start - self._block : self._next - self._block]
                columns[first - a : last - a] -= self._factor[start : self._next, first:last].T @ errors
        return columns

    def column(self) -> Float[Tensor, " out"]:
        """Return the next column as it stands: a view, not to be written into, that stays as it is."""
        return self._columns[self._next]

    def fix(self, w: Float[Tensor, " out"], q: Float[Tensor, " out"]) -> None:
        """Change the next column from ``w``, as it stands by now, to ``q``."""
        i, end = self._next, self._next + 1
        error = torch.sub(w, q, out=self._errors[i - self._block]).div_(self._pivots[i])
        self._next = end
        if end < self._part_end:
            self._columns[end : self._part_end].addr_(self._factor[i, end : self._part_end], error, alpha=-1)
            return
        start, stop = (self._part, self._block_end) if end < self._block_end else (self._block, len(self._columns))
        errors = self._errors[start - self._block : end - self._block]
        self._columns[end:stop].addmm_(self._factor[start:end, end:stop].T, errors, alpha=-1)
        self._part = end
        if end == self._block_end:
            self._block = end
        self._ends()
