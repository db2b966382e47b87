r"""Optimal Brain Surgeon: remove one weight, move all others to make up for it; on a row and on a small network.

Notation: w weights (a row, or all parameters of a network), H Hessian of the loss over them, B = H⁻¹,
$L_q = \tfrac12 w_q^2/B_{qq}$ the least loss of removing weight q, $\delta w = -\tfrac{w_q}{B_{qq}} B_{:,q}$ the move.
Source: Hassibi, Stork 1992, Second order derivatives for network pruning: Optimal Brain Surgeon, NeurIPS 5, eq. (5)
(δw and L_q); the lemma that takes q out of B: Frantar, Singh, Alistarh 2022, arXiv:2208.11580, lemma 1.
Syllabus: 2.03
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mlcomp.checks import check_choice, check_hessian, check_sparsity, check_vector, check_whole, narrowed, removals
from mlcomp.context import isolated, isolated_run
from mlcomp.layerwise.hessian import inverse_hessian
from mlcomp.obs.fisher_inverse import empirical_fisher_gradients, fisher_inverse
from mlcomp.obs.network_hessian import FlatNetwork, flatten_network, gauss_newton, network_hessian, network_with

CURVATURES = ("exact", "gauss-newton", "fisher")


@dataclass(frozen=True)
class ObsStep:
    """One weight removed: the new ``weight`` row, the ``index`` that was removed, the predicted ``loss_increase``."""

    weight: Float[Tensor, " inp"]
    index: int
    loss_increase: float


@isolated
def obs_prune_step(
    weight_row: Float[Tensor, " inp"], hessian: Float[Tensor, "inp inp"], *, damp: float = 0.0
) -> ObsStep:
    r"""Remove the one weight of a row that costs least, and move the others to the least-squares optimum.

    Weights that are zero already stay zero and take no part (their rows and columns leave H), so that calling this k
    times is Algorithm 1 of ExactOBS, one step at a time.

    Args:
        weight_row: (inp,), any float dtype, computed in float64; not modified.
        hessian: (inp, inp), symmetric positive definite on the live inputs (or made so by ``damp``); not modified.
        damp: share of the mean live diagonal of H added to its diagonal.
    Returns:
        The new row in the dtype of ``weight_row``, the index that was removed (the lowest of equals), and
        $L_q = \tfrac12\,\delta w (H+\lambda I) \delta w^\top$: with $H = 2XX^\top$ and no damping, the squared output
        error that this step adds.
    Raises:
        ValueError: not a row, no weight left to remove, malformed or singular H, NaN or inf.
    Guarantee: no other choice of index and move has a smaller loss. A weight of a dead input costs nothing, moves
        nothing and goes first.
    """
    check_vector("weight_row", weight_row)
    hessian = check_hessian(hessian, len(weight_row))
    w = weight_row.detach().double().clone()
    support = w.nonzero().flatten()
    if len(support) == 0:
        raise ValueError("every weight of the row is zero already: nothing is left to remove")
    full = inverse_hessian(hessian, damp=damp)
    gone = (w == 0).nonzero().flatten()
    b = _eliminate(full.inverse, support, gone)
    live = ~full.dead[support]
    loss = w[support].square() / b.diagonal() / 2 * live
    q = int(loss.argmin())
    w[support] -= w[support[q]] / b[q, q] * b[:, q]
    w[support[q]] = 0
    return ObsStep(narrowed(w, weight_row.dtype), int(support[q]), float(loss[q]))


def _eliminate(b: Tensor, keep: Tensor, gone: Tensor) -> Tensor:
    """Return the inverse of H over ``keep`` from the inverse of H over everything: the lemma for a group."""
    cross = b[gone][:, keep]
    return b[keep][:, keep] - cross.T @ torch.linalg.solve(b[gone][:, gone], cross)


@dataclass(frozen=True)
class NetworkOBS:
    """A pruned copy of a network, and how it came to be.

    Attributes:
        model: the pruned copy.
        keep: True where a weight was kept, by parameter name.
        order: indices of the removed weights in the vector of all trainable parameters, first to last.
        loss_increases: $L_q$ of each removal, as predicted.
    """

    model: nn.Module
    keep: dict[str, Bool[Tensor, "..."]]
    order: list[int]
    loss_increases: list[float]


@isolated_run
def obs(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    *,
    sparsity: float,
    curvature: str = "gauss-newton",
    damp: float = 0.01,
    recompute: int | None = None,
) -> NetworkOBS:
    r"""Prune a small network weight by weight with the inverse Hessian of its own loss over all its parameters.

    Args:
        model: trained to a minimum, no randomness in evaluation mode; not modified.
        inputs: batch, samples first.
        targets: for ``loss_fn``.
        loss_fn: (outputs, targets) → scalar, a sum or mean over samples.
        sparsity: share of the prunable weights (matrices and kernels) that become zero. Biases and norms are never
            removed, but they move with the rest.
        curvature: "exact" Hessian (autograd on autograd); "gauss-newton", which is Hassibi and Stork's choice and
            never indefinite for a convex loss; or "fisher": outer products of the samples' loss gradients,
            inverted by their recursion.
        damp: share of the mean absolute diagonal added to the diagonal (their α, made relative). It also keeps the
            other weights where the expansion is valid: with too little, OBS goes far along flat directions and loses.
        recompute: removals after which the curvature is computed again at the new weights; None: never, the lemma of
            the inverse update alone.
    Raises:
        ValueError: unknown curvature, damp ≤ 0 with "fisher", sparsity outside [0, 1], recompute < 1, a curvature
            that is not positive definite with this damping (an "exact" Hessian away from a minimum).
    Guarantee: exactly removals(sparsity, prunable) weights are removed, and are zero. Where the loss is quadratic
        in the parameters and the network at its minimum, curvature="exact" and no damping make the sum of
        ``loss_increases`` the true increase of the loss.
    Cost: n² numbers, n³ per computation of the curvature, n² per removal, for n parameters.
    Deviations: none in the step; the gradient is taken as zero, as in the paper. They stop at an error and may train
        again, where this takes a sparsity.
    """
    check_choice("curvature", curvature, CURVATURES)
    if recompute is not None:
        check_whole("recompute", recompute, 1)
    if not damp >= 0 or (curvature == "fisher" and damp == 0):
        raise ValueError(f"damp must be ≥ 0, and > 0 with the rank-deficient fisher, got {damp!r}")
    check_sparsity(sparsity)
    flat = flatten_network(model, inputs, targets, loss_fn)
    theta = flat.theta.clone()
    active = torch.ones_like(flat.prunable)
    b = theta[:0]
    order, losses = [], []
    for step in range(removals(sparsity, int(flat.prunable.sum()))):
        if step == 0 or (recompute is not None and step % recompute == 0):
            b = _inverse(flat, theta, active, curvature, damp)
        loss = (theta.square() / b.diagonal() / 2).masked_fill(~(active & flat.prunable), torch.inf)
        q = int(loss.argmin())
        theta -= theta[q] / b[q, q] * b[:, q]
        theta[q] = 0
        active[q] = False
        order.append(q)
        losses.append(float(loss[q]))
        b -= torch.outer(b[:, q], b[q]) / b[q, q]
        # The lemma leaves exact zeros here; rounding must not let a removed weight move again.
        b[q], b[:, q], b[q, q] = 0, 0, 1
    return NetworkOBS(network_with(model, theta), flat.split(active), order, losses)


def _inverse(flat: FlatNetwork, theta: Tensor, active: Tensor, curvature: str, damp: float) -> Tensor:
    """Return the inverse curvature over the active parameters; removed ones have an identity row."""
    where = active.nonzero().flatten()
    if curvature == "fisher":
        gradients = empirical_fisher_gradients(flat, theta)[:, where]
        part = fisher_inverse(gradients, damping=damp * float(gradients.square().mean()))
    else:
        h = network_hessian(flat, theta) if curvature == "exact" else gauss_newton(flat, theta)
        h = h[where][:, where]
        h = h + damp * float(h.diagonal().abs().mean()) * torch.eye(len(h), dtype=h.dtype, device=h.device)
        factor, info = torch.linalg.cholesky_ex(h)
        pivots = factor.diagonal().square() / h.diagonal()
        # A singular matrix may pass Cholesky by rounding; its smallest pivot then is at the rounding level.
        if int(info) or float(pivots.min()) < len(h) * torch.finfo(h.dtype).eps:
            raise ValueError(
                f"the {curvature} curvature over {len(h)} parameters is not positive definite (damp={damp}): "
                "train closer to a minimum, raise damp, or use gauss-newton with some damping"
            )
        part = torch.cholesky_inverse(factor)
    b = torch.eye(len(theta), dtype=theta.dtype, device=theta.device)
    b[where[:, None], where] = part
    return b
