r"""AdaPrune: choose a mask by magnitude, then re-fit what is kept to the layer's output by gradient descent.

Notation: W weight (out, inp), M mask of kept weights, $H = 2 X X^\top$;
$\min_{\hat W} \lVert WX - (M \odot \hat W) X \rVert^2$, row by row a convex quadratic.
Source: Hubara et al. 2021, arXiv:2102.08124.   Syllabus: 2.07
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mlcomp.checks import check_hessian, check_mask, check_target, check_weight, check_whole, narrowed
from mlcomp.context import isolated
from mlcomp.prune.importance.magnitude import magnitude

# A row is done when its preconditioned gradient is this small against where it began: the rounding level of float64.
TOLERANCE = 1e-12


@isolated
def adaprune(
    weight: Float[Tensor, "out inp"],
    hessian: Float[Tensor, "inp inp"],
    *,
    sparsity: float | None = None,
    pattern: tuple[int, int] | None = None,
    mask: Bool[Tensor, "out inp"] | None = None,
    steps: int = 100,
) -> Float[Tensor, "out inp"]:
    r"""Prune by magnitude (or by a given mask) and descend on the layer's output error.

    Args:
        weight: (out, inp), any float dtype, computed in float64; not modified.
        hessian: (inp, inp), $2XX^\top$, float32 or float64; may be singular; not modified.
        sparsity: share of zeros over the matrix. pattern: (n, m), n zeros in every m inputs. mask: True where a
            weight is kept. Exactly one of the three.
        steps: descent steps at most; each costs one product with H.
    Returns:
        (out, inp) in the dtype of ``weight``, zero outside the mask.
    Raises:
        ValueError: NaN or inf, not exactly one target, a mask of another shape, steps negative, H malformed.
    Guarantee: the error never grows with a step, so the result is no worse than the mask alone; with enough steps
        (at most inp, in exact arithmetic) it is the least-squares optimum on the mask. With a singular H it is
        that optimum which is nearest to the original weights in the norm $\sum_j h_{jj}\,\delta w_j^2$.
    Cost: 2·out·inp² FLOPs a step. At a condition number of 1e10 hundreds of steps are needed for all digits.
    Deviations: the paper descends with Adam on batches of X; here each row takes conjugate gradient steps on H, with
        the diagonal of H as preconditioner: the same objective and optimum, without a learning rate.
    Dead inputs (zero diagonal of H): their weights are zeroed first, so they are the first to go by magnitude.
    """
    weight = check_weight(weight)
    hessian = check_hessian(hessian, weight.shape[1])
    check_whole("steps", steps, 0)
    h = hessian.double()
    dead = h.diagonal() == 0
    original = weight.double()
    live = original.masked_fill(dead, 0)
    if mask is None:
        check_target(sparsity, pattern)
        kept = magnitude(live, sparsity=sparsity, pattern=pattern) != 0
    else:
        if sparsity is not None or pattern is not None:
            raise ValueError(f"a mask is a target of its own: leave out {sparsity=} and {pattern=}")
        check_mask("mask", mask, weight)
        kept = mask & ~dead
    preconditioner = kept / h.diagonal().masked_fill(dead, 1)
    return narrowed(_descend(live, h, kept, preconditioner, steps), weight.dtype)


def _descend(weight: Tensor, h: Tensor, kept: Tensor, preconditioner: Tensor, steps: int) -> Tensor:
    """Conjugate gradients for all rows at once; each row has its own step length."""
    current = weight * kept
    residual = ((weight - current) @ h) * kept  # minus the gradient of ½·δ H δᵀ
    scaled = residual * preconditioner
    direction = scaled
    energy = (residual * scaled).sum(1, keepdim=True)
    goal = energy * TOLERANCE**2
    for _ in range(steps):
        if (energy <= goal).all():
            break
        curved = (direction @ h) * kept
        curvature = (direction * curved).sum(1, keepdim=True)
        # A finished row, or one without anything to move, stands still.
        active = (energy > goal) & (curvature > 0)
        length = torch.where(active, energy / curvature, 0)
        current = current + length * direction
        residual = residual - length * curved
        scaled = residual * preconditioner
        new_energy = (residual * scaled).sum(1, keepdim=True)
        direction = scaled + torch.where(active, new_energy / energy, 0) * direction
        energy = torch.where(active, new_energy, 0)
    return current
