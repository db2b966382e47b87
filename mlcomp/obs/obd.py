r"""Optimal Brain Damage: rank weights by the diagonal of the Hessian.

Notation: $s_i = \tfrac12 h_{ii} w_i^2$ the saliency: the loss that a second-order expansion at a minimum predicts for
removing weight i alone, with nothing else moved.
Source: LeCun, Denker, Solla 1989, Optimal Brain Damage, NeurIPS 2, eq. (4) and section 2.   Syllabus: 2.02
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mlcomp.checks import check_choice, check_hessian, check_sparsity, check_target, check_weight, removals
from mlcomp.context import isolated, isolated_run
from mlcomp.obs.network_hessian import (
    FlatNetwork,
    flatten_network,
    gauss_newton_diagonal,
    hessian_diagonal,
    network_with,
)
from mlcomp.prune.pattern import nm_mask, smallest_mask


@isolated
def obd_saliency(weight: Float[Tensor, "out inp"], hessian: Float[Tensor, "inp inp"]) -> Float[Tensor, "out inp"]:
    r"""Return $\tfrac12 h_{ii}w_i^2$ of each weight of a linear layer, in float64.

    With $H = 2XX^\top$ this is $w_i^2\lVert x_i\rVert^2$, the exact squared output error of removing weight i alone,
    and the square of Wanda's score.

    Raises:
        ValueError: malformed weight or H.
    """
    weight = check_weight(weight)
    hessian = check_hessian(hessian, weight.shape[1])
    return weight.double().square() * hessian.double().diagonal() / 2


@isolated
def obd(
    weight: Float[Tensor, "out inp"],
    hessian: Float[Tensor, "inp inp"],
    *,
    sparsity: float | None = None,
    pattern: tuple[int, int] | None = None,
) -> Float[Tensor, "out inp"]:
    """Zero the weights of least saliency in a linear layer; the others stay as they are.

    Args:
        weight: (out, inp), any float dtype; not modified.
        hessian: (inp, inp), only its diagonal matters; not modified. It may be singular.
        sparsity: share of zeros over the matrix.
        pattern: (n, m), instead: n zeros in every m consecutive inputs, ragged tail as in ``nm_mask``.
    Raises:
        ValueError: malformed weight or H, not exactly one target.
    Guarantee: exactly removals(sparsity, out·inp) weights are removed, ties included (the lowest index first).
        Weights of dead inputs have saliency 0 and go before all others.
    """
    check_target(sparsity, pattern)
    saliency = obd_saliency(weight, hessian)
    if pattern is not None:
        removed = nm_mask(saliency, pattern)
    else:
        assert sparsity is not None  # check_target saw to it
        removed = smallest_mask(saliency.reshape(1, -1), removals(sparsity, weight.numel())).view_as(weight)
    return weight.detach().masked_fill(removed, 0)


@dataclass(frozen=True)
class NetworkOBD:
    """A pruned copy of a network.

    Attributes:
        model: the pruned copy.
        keep: True where a weight was kept, by parameter name.
        saliency: ½·h·w² of every parameter, by name.
        predicted: sum of the saliencies of what was removed, the predicted increase of the loss.
    """

    model: nn.Module
    keep: dict[str, Bool[Tensor, "..."]]
    saliency: dict[str, Float[Tensor, "..."]]
    predicted: float


@isolated_run
def network_obd(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    *,
    sparsity: float,
    curvature: str = "gauss-newton",
) -> NetworkOBD:
    r"""Prune a small network by the saliency $\tfrac12 h_{ii}w_i^2$ of its own loss, all layers ranked together.

    Args:
        model: network without randomness in evaluation mode; not modified.
        inputs: batch, samples first.
        targets: for ``loss_fn``.
        loss_fn: (outputs, targets) → scalar, a sum or mean over samples.
        sparsity: share of the prunable weights (matrices and kernels; biases and norms stay) that become zero.
        curvature: "gauss-newton" (never negative for a convex loss) or "exact" (may be negative away from a minimum;
            such a weight goes early, as the expansion predicts a gain).
    Raises:
        ValueError: unknown curvature, sparsity outside [0, 1], and as ``flatten_network``.
    Guarantee: exactly removals(sparsity, prunable) weights are removed.
    Deviations: LeCun et al. prune some parameters, train again, and repeat; call this between trainings. They
        pass the diagonal back through the layers and drop off-diagonal terms at each; here it is the diagonal of the
        exact Hessian or of the exact Gauss–Newton matrix.
    """
    check_choice("curvature", curvature, ("exact", "gauss-newton"))
    check_sparsity(sparsity)
    flat = flatten_network(model, inputs, targets, loss_fn)
    diagonal = hessian_diagonal(flat) if curvature == "exact" else gauss_newton_diagonal(flat)
    return prune_network(model, flat, diagonal * flat.theta.square() / 2, sparsity)


def prune_network(model: nn.Module, flat: FlatNetwork, saliency: Float[Tensor, " n"], sparsity: float) -> NetworkOBD:
    """Return a copy of ``model`` without the prunable weights of least saliency."""
    ranked = saliency.masked_fill(~flat.prunable, torch.inf)
    removed = smallest_mask(ranked, removals(sparsity, int(flat.prunable.sum())))
    return NetworkOBD(
        model=network_with(model, flat.theta.masked_fill(removed, 0)),
        keep=flat.split(~removed),
        saliency=flat.split(saliency),
        predicted=float(saliency[removed].sum()),
    )
