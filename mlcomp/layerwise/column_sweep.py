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
from mlcomp.layerwise.hessian import inverse_hessian

# How the columns may be ordered; "activation" and "ascending" sort by the diagonal of H, large or small inputs first.
ORDERS = ("natural", "activation", "ascending")


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

    Raises:
        ValueError: as :func:`mlcomp.layerwise.inverse_hessian`.
    """
    inverse = inverse_hessian(hessian, damp=damp)
    return torch.linalg.cholesky(inverse.inverse[columns][:, columns], upper=True), inverse.dead


class ColumnSweep:
    """The columns of W, fixed one after the other; the errors of a block reach the columns after it all at once.

    The caller goes through the columns in order: ``now`` shows them as they stand, ``fix`` ends the turn of one.

    Guarantee: ``block_size`` changes the result by float64 rounding only.
    Cost: 2·out·inp² FLOPs, nearly all of it in matrix products.
    """

    @isolated
    def __init__(
        self, weight: Float[Tensor, "inp out"], factor: Float[Tensor, "inp inp"], *, block_size: int
    ) -> None:
        """Begin a sweep.

        Args:
            weight: (inp, out), the transposed weight, so that a column is a contiguous row; float64; not modified.
            factor: U, (inp, inp).
            block_size: columns whose errors are collected before the columns after the block are rewritten.
        """
        self._factor, self._block_size = factor, block_size
        self._settled = weight.clone()  # what the errors of all finished blocks have done
        self._errors = torch.empty_like(weight)
        self._start = self._next = 0  # of the block under way: its first column, and the first that is not fixed

    @isolated
    def now(self, a: int, b: int) -> Float[Tensor, "columns out"]:
        """Return columns a … b − 1 as the columns fixed so far have left them; none of them may be fixed itself."""
        block = slice(self._start, self._next)
        return self._settled[a:b] - self._factor[block, a:b].T @ self._errors[block]

    @isolated
    def fix(self, w: Float[Tensor, " out"], q: Float[Tensor, " out"]) -> None:
        """Change the next column from ``w``, as it stands by now, to ``q``."""
        i = self._next
        self._errors[i] = (w - q) / self._factor[i, i]
        self._next = end = i + 1
        if end - self._start == self._block_size:
            block = slice(self._start, end)
            self._settled[end:] -= self._factor[block, end:].T @ self._errors[block]
            self._start = end
