r"""The sweep that GPTQ and SparseGPT share: fix one column, let the columns after it make up for the error.

Notation: W weight (out, inp), $H = 2XX^\top$, U the upper Cholesky factor of the inverse, $H^{-1} = U^\top U$.
When columns leave in a fixed order, row i of U holds all that OBS needs at step i: with F the columns i and later,
$[H_F^{-1}]_{ii} = U_{ii}^2$ and $[H_F^{-1}]_{ij} = U_{ii}U_{ij}$. A column that changes from w to q therefore makes
the error $e = (w - q)/U_{ii}$, adds $\tfrac12 e^2$ to the loss, and moves each later column j by $-e\,U_{ij}$.
Source: Frantar et al. 2023, GPTQ, arXiv:2210.17323, section 3.3, steps 2 and 3.   Syllabus: 2.05, 2.08
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mlcomp.layerwise.hessian import inverse_hessian

Columns = Callable[[int, int], Tensor]  # of a and b: the columns a … b−1 as they stand by then, (b−a, out)

# How the columns may be ordered; "activation" and "ascending" sort by the diagonal of H, large or small inputs first.
ORDERS = ("natural", "activation", "ascending")


def check_sweep(order: str, block_size: int) -> None:
    """Raise unless ``order`` is one of ORDERS and ``block_size`` a whole number ≥ 1."""
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
    if isinstance(block_size, bool) or not isinstance(block_size, int) or block_size < 1:
        raise ValueError(f"block_size must be a whole number of columns ≥ 1, got {block_size!r}")


def column_order(hessian: Float[Tensor, "inp inp"], order: str) -> Int[Tensor, " inp"]:
    """Return the columns in the order in which they are fixed; equal diagonals keep their natural order."""
    if order == "natural":
        return torch.arange(len(hessian), device=hessian.device)
    return hessian.diagonal().argsort(descending=order == "activation", stable=True)


def inverse_factor(
    hessian: Float[Tensor, "inp inp"], columns: Int[Tensor, " inp"], *, damp: float
) -> tuple[Float[Tensor, "inp inp"], Bool[Tensor, " inp"]]:
    r"""Return U (float64), $U^\top U = (H + \lambda I)^{-1}$ reordered, and the dead inputs, not reordered.

    Raises:
        ValueError: as :func:`mlcomp.layerwise.inverse_hessian`.
    """
    inverse = inverse_hessian(hessian, damp=damp)
    return torch.linalg.cholesky(inverse.inverse[columns][:, columns], upper=True), inverse.dead


def column_sweep(
    weight: Float[Tensor, "inp out"],
    factor: Float[Tensor, "inp inp"],
    choose: Callable[[int, Columns], Tensor],
    *,
    block_size: int,
) -> Float[Tensor, "inp out"]:
    """Fix the columns of W in order and return the result.

    Args:
        weight: (inp, out), the transposed weight, so that a column is a contiguous row; float64; not modified.
        factor: U, (inp, inp).
        choose: ``choose(i, current)`` returns the final value of column i, (out,), and is called once for each i in
            order; ``current(a, b)`` gives the columns a … b−1 (i ≤ a) as they stand by then, (b−a, out).
        block_size: columns whose errors are collected before the columns after the block are rewritten.
    Guarantee: block_size changes the result by float64 rounding only.
    Cost: 2·out·inp² FLOPs, nearly all of it in matrix products.
    """
    inp = len(weight)
    settled = weight.clone()  # what the errors of all finished blocks have done
    errors = torch.empty_like(weight)
    result = torch.empty_like(weight)
    for start in range(0, inp, block_size):
        end = min(start + block_size, inp)
        for i in range(start, end):

            def current(a: int, b: int, start: int = start, i: int = i) -> Tensor:
                return settled[a:b] - factor[start:i, a:b].T @ errors[start:i]

            result[i] = choose(i, current)
            errors[i] = (current(i, i + 1)[0] - result[i]) / factor[i, i]
        settled[end:] -= factor[start:end, end:].T @ errors[start:end]
    return result
