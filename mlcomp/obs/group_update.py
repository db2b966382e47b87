r"""The group update: remove a whole set of weights at once, the others make up for it.

Notation: M the set of inputs that a row loses; $\delta_M = -[H^{-1}]_{:,M}\,([H^{-1}]_{MM})^{-1}\,w_M$.
Source: Frantar, Singh, Alistarh 2022, arXiv:2208.11580, section 4 and appendix.   Syllabus: 2.05, 2.06
"""

from jaxtyping import Bool, Float
from torch import Tensor

from mlcomp.checks import check_hessian, check_mask, check_weight, check_whole, narrowed
from mlcomp.context import isolated
from mlcomp.layerwise.hessian import inverse_hessian
from mlcomp.obs.row_solve import solve_on_subsets


@isolated
def group_update(
    weight: Float[Tensor, "out inp"],
    removed: Bool[Tensor, "out inp"],
    hessian: Float[Tensor, "inp inp"],
    *,
    damp: float = 0.0,
    max_bytes: int = 2**28,
) -> Float[Tensor, "out inp"]:
    r"""Remove the marked weights of each row and update the others optimally.

    Args:
        weight: (out, inp), any float dtype, computed in float64; not modified.
        removed: (out, inp), True on the weights to remove, $M_i$ of row i.
        hessian: (inp, inp), $2XX^\top$, float32 or float64; not modified.
        damp: share of the mean live diagonal of H added to its diagonal.
        max_bytes: bound on the working memory, as long as one row fits.
    Returns:
        (out, inp) in the dtype of ``weight``; exact zeros where removed, and at dead inputs.
    Raises:
        ValueError: malformed weight, ``removed`` or H; H + λI singular.
    Guarantee: removing the same weights one by one, in any order, by the OBS update gives the same result.
    Cost: |M|³/3 FLOPs a row and one product with $H^{-1}$; the choice for small M, as ``refit`` is for large.
    """
    weight = check_weight(weight)
    hessian = check_hessian(hessian, weight.shape[1])
    check_mask("removed", removed, weight)
    check_whole("max_bytes", max_bytes, 1)
    inverse = inverse_hessian(hessian, damp=damp)
    w = weight.double().masked_fill(inverse.dead, 0)
    return narrowed(update_rows(w, removed, inverse.inverse, max_bytes=max_bytes)[0], weight.dtype)


def update_rows(
    weight: Float[Tensor, "rows d"], removed: Bool[Tensor, "rows d"], inverse: Float[Tensor, "d d"], *, max_bytes: int
) -> tuple[Float[Tensor, "rows d"], Float[Tensor, " rows"]]:
    r"""Apply the group update with a known, regular inverse Hessian (float64 throughout, nothing checked).

    Returns:
        The rows, and the loss of each, $\tfrac12 w_M ([H^{-1}]_{MM})^{-1} w_M^\top$.
    """
    # Weights that are zero already still count: removing them means that they stay zero.
    multipliers = solve_on_subsets(inverse, removed, weight, tolerance=None, max_bytes=max_bytes)
    losses = (multipliers * weight).sum(1) / 2
    return (weight - multipliers @ inverse).masked_fill(removed, 0), losses
