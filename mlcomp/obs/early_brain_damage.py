r"""Early Brain Damage: Optimal Brain Damage for a network that is not at a minimum of its loss.

Notation: w a weight, $g = \partial E/\partial w$, $h = \partial^2 E/\partial w^2$; along this weight alone the loss
is $E(w + \delta) \approx E + g\delta + \tfrac12h\delta^2$, least at $\delta = -g/h$.
Source: Tresp, Neuneier, Zimmermann 1996, Early Brain Damage, NeurIPS 9, the definition: E at 0 less the least E.
Syllabus: 3.10
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import grad

from mlcomp.checks import check_like, check_sparsity, check_values
from mlcomp.context import isolated, isolated_run
from mlcomp.obs.network_hessian import flatten_network, gauss_newton_diagonal
from mlcomp.obs.obd import NetworkOBD, prune_network


@isolated
def ebd_saliency(
    weights: Float[Tensor, "*shape"], gradient: Float[Tensor, "*shape"], curvature: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    r"""Return $-gw + \tfrac12hw^2 + \tfrac{g^2}{2h} = \tfrac{(hw - g)^2}{2h}$ of each weight, float64.

    It compares the loss without the weight, $E(0)$, with the least that training this weight on can reach. At a
    minimum, g = 0, it is OBD's. For a weight that is zero it is $g^2/(2h)$, what it is worth to bring it back.

    Args:
        weights: any shape, any float dtype.
        gradient: g, of that shape.
        curvature: h ≥ 0, of that shape, such as the diagonal of the Gauss–Newton matrix. Where it is 0, g must be 0,
            too (then the loss does not depend on the weight, and the saliency is 0).
    Raises:
        ValueError: shapes differ, NaN or inf, a negative curvature, or a gradient without curvature: then the
            expansion has no least value along the weight.
    Guarantee: never negative, and zero exactly where the expansion has its minimum at w = 0.
    Deviations: the paper's full text was not at hand; the formula follows from the definition in its abstract.
    """
    check_values("weights", weights)
    check_like("gradient", gradient, tuple(weights.shape), "weights")
    check_like("curvature", curvature, tuple(weights.shape), "weights")
    w, g, h = (x.detach().double() for x in (weights, gradient, curvature))
    lost = (h < 0) | ((h == 0) & (g != 0))
    if lost.any():
        raise ValueError(
            f"curvature must be positive where the gradient is not zero, and is not at {int(lost.sum())} of "
            f"{lost.numel()} weights: the expansion has no minimum there; take the Gauss–Newton diagonal"
        )
    # h·w − g first: the three terms of the sum cancel where the minimum is near 0.
    root = (h / 2).sqrt() * w - torch.where(h > 0, g / (2 * h).sqrt(), 0)
    return root.square()


@isolated_run
def network_ebd(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    *,
    sparsity: float,
) -> NetworkOBD:
    r"""Choose the weights of a network to keep while it is still being trained, with the Gauss–Newton diagonal.

    Args:
        model: network without randomness in evaluation mode; not modified. Weights that are zero take part.
        inputs: batch, samples first.
        targets: for ``loss_fn``.
        loss_fn: (outputs, targets) → scalar, a sum or mean over samples.
        sparsity: share of the prunable weights (matrices and kernels) that are not kept.
    Returns:
        As :func:`network_obd`. A weight that is zero and kept is revived: it has no value yet, and training on with
        the mask ``keep`` gives it one. ``predicted`` is relative to each removed weight's best value, not to now.
    Raises:
        ValueError: sparsity outside [0, 1], and as :func:`flatten_network` and :func:`ebd_saliency`.
    Guarantee: exactly removals(sparsity, prunable) weights are not kept.
    """
    check_sparsity(sparsity)
    flat = flatten_network(model, inputs, targets, loss_fn)
    gradient = grad(flat.loss)(flat.theta).detach()
    curvature = gauss_newton_diagonal(flat)
    # Without curvature the outputs don't depend on the weight, and what is left of the gradient is rounding.
    saliency = ebd_saliency(flat.theta, torch.where(curvature > 0, gradient, 0), curvature)
    return prune_network(model, flat, saliency, sparsity)
