r"""The least-squares refit: the best weights on a given mask.

Notation: W weight, K the inputs a row keeps, M those it loses, $H = 2XX^\top$.
$H_{KK}\,\delta_K = H_{KM}\,w_M$, the normal equations of $\min \lVert wX - \hat wX\rVert^2$ over $\hat w$ on K.
Source: Frantar, Singh, Alistarh 2022, arXiv:2208.11580, section 4; Singh and Alistarh 2020, arXiv:2004.14340.
Syllabus: 2.05
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mlcomp.checks import check_hessian, check_mask, check_weight, check_whole, narrowed
from mlcomp.context import isolated
from mlcomp.layerwise.hessian import damped_hessian
from mlcomp.obs.row_solve import solve_on_subsets


@isolated
def refit(
    weight: Float[Tensor, "out inp"],
    mask: Bool[Tensor, "out inp"],
    hessian: Float[Tensor, "inp inp"],
    *,
    damp: float = 0.0,
    max_bytes: int = 2**28,
) -> Float[Tensor, "out inp"]:
    r"""Return the weights on ``mask`` with the least output error, in closed form.

    Args:
        weight: (out, inp), the original weight, any float dtype, computed in float64; not modified.
        mask: (out, inp), True where a weight is kept.
        hessian: (inp, inp), $2XX^\top$, float32 or float64; not modified.
        damp: share of the mean live diagonal of H added to its diagonal: pulls the result towards ``weight``.
        max_bytes: bound on the working memory, as long as one row fits.
    Returns:
        (out, inp) in the dtype of ``weight``; exact zeros outside the mask and at dead inputs.
    Raises:
        ValueError: malformed weight, mask or H; H + λI singular on the inputs that a row keeps. H itself may be
            singular, as with fewer samples than inputs, while each row keeps no more inputs than its rank.
    Guarantee: no other weights on the mask have a lower error $\tfrac12\,\delta w\,(H+\lambda I)\,\delta w^\top$.
        A mask that keeps everything returns the weight. Equal to :func:`mlcomp.obs.group_update` where H is regular.
    Cost: |K|³/3 + |K|² FLOPs a row.
    """
    weight = check_weight(weight)
    hessian = check_hessian(hessian, weight.shape[1])
    check_mask("mask", mask, weight)
    check_whole("max_bytes", max_bytes, 1)
    damped = damped_hessian(hessian, damp=damp)
    w = weight.double().masked_fill(damped.dead, 0)  # and nothing moves it: H knows no other input of a dead one
    lost = w.masked_fill(mask, 0)
    # What rounding leaves of a zero pivot: a few eps of the dtype in which X·Xᵀ was summed, see inverse_hessian.
    tolerance = max(10 * torch.finfo(hessian.dtype).eps, w.shape[1] * torch.finfo(torch.float64).eps)
    subset = mask & lost.any(1, keepdim=True)  # a row that loses nothing stays as it is
    delta = solve_on_subsets(damped.matrix, subset, lost @ damped.matrix, tolerance=tolerance, max_bytes=max_bytes)
    return narrowed((w + delta).masked_fill(~mask, 0), weight.dtype)
