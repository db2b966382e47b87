r"""L-OBS: layer-wise Optimal Brain Surgeon with one inverse Hessian and one ranking for the whole layer.

Notation: W weight, $H = 2XX^\top$, B = H⁻¹, $L_q = \tfrac12 w_q^2/B_{qq}$ the sensitivity of weight q of a row.
Source: Dong, Chen, Pan 2017, arXiv:1705.07565, eq. (5), algorithm 1, theorem 2.   Syllabus: 2.04
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import check_hessian, check_sparsity, check_values, check_weight, narrowed, removals
from mlcomp.context import isolated
from mlcomp.layerwise.hessian import inverse_hessian
from mlcomp.prune.pattern import smallest_mask


@isolated
def l_obs(
    weight: Float[Tensor, "out inp"], hessian: Float[Tensor, "inp inp"], *, sparsity: float, damp: float = 0.01
) -> Float[Tensor, "out inp"]:
    r"""Remove the weights of least sensitivity in their initial order, each with the update of the initial inverse.

    Sensitivities are computed once and ranked over the layer. The weights then go in that order: with its current
    value $w_q$, its row moves by $-\tfrac{w_q}{B_{qq}}B_{q,:}$, and what was removed before is set back to zero. B is
    never updated, so a removed weight still "takes part" in later updates and is cut off again: this is what ExactOBS
    mends, and why L-OBS falls behind as sparsity grows.

    Args:
        weight: (out, inp), any float dtype, computed in float64; not modified.
        hessian: (inp, inp), $2XX^\top$; not modified.
        sparsity: share of zeros over the matrix.
        damp: share of the mean live diagonal of H added to its diagonal.
    Returns:
        The pruned and updated weight, in the dtype of ``weight``.
    Raises:
        ValueError: malformed weight or H, sparsity outside [0, 1], H + λI singular.
    Guarantee: exactly removals(sparsity, out·inp) weights are removed, ties included, dead inputs first; if the dead
        inputs have more weights than that, all of them are removed and nothing else. One removal per row is optimal.
    Cost: inp³ for B, out·inp² for the updates.
    Deviations: the paper stops at a sensitivity; here the number of zeros is given. Rows, which do not interact, take
        their steps together.
    """
    weight = check_weight(weight)
    out, inp = weight.shape
    hessian = check_hessian(hessian, inp)
    check_sparsity(sparsity)
    inverse = inverse_hessian(hessian, damp=damp)
    b = inverse.inverse
    w = weight.double().masked_fill(inverse.dead, 0)
    sensitivity = w.square() / b.diagonal() / 2
    sensitivity[:, inverse.dead] = -1  # their removal costs nothing, so they are the first to go
    removed = smallest_mask(sensitivity.reshape(1, -1), removals(sparsity, out * inp)).view(out, inp)

    order = sensitivity.masked_fill(~removed, torch.inf).argsort(dim=1, stable=True)
    rows = torch.arange(out, device=w.device)
    gate = torch.ones_like(w)
    for step in range(int(removed.sum(1).max())):
        column = order[:, step]
        active = removed[rows, column].to(w.dtype)  # rows with fewer removals have finished
        w = w - (active * w[rows, column] / b.diagonal()[column])[:, None] * b[column]
        gate[rows, column] -= active
        w = w * gate
    return narrowed(w, weight.dtype)


@isolated
def l_obs_error_bound(compressed: Sequence[Float[Tensor, "_out _inp"]], layer_errors: Sequence[float]) -> float:
    r"""Bound the output error of a pruned ReLU network by the errors that its layers were pruned with.

    $\lVert \tilde Z_L - Z_L \rVert_F \le \sum_{l=1}^{L} \Bigl(\prod_{k=l+1}^{L} \lVert\hat W_k\rVert_F\Bigr)
    \lVert (\hat W_l - W_l) X_l \rVert_F$: at each layer the error that comes in grows at most by the norm of Ŵ (the
    ReLU between layers does not stretch), and the layer adds its own.

    Args:
        compressed: Ŵ of each layer, first to last; biases, where unchanged, do not matter.
        layer_errors: $\lVert(\hat W_l - W_l)X_l\rVert_F$ of each layer on the inputs $X_l$ of the *original* network;
            with $H_l = 2X_lX_l^\top$ it is $\sqrt{\tfrac12\operatorname{tr}(\delta W_l H_l \delta W_l^\top)}$.
    Returns:
        The bound on ‖Z̃ − Z‖_F, the last layer's error before any activation, over the same samples.
    Raises:
        ValueError: no layers, as many errors as layers is not given, or a negative error.
    """
    if len(compressed) == 0 or len(compressed) != len(layer_errors):
        raise ValueError(f"give one error per layer, got {len(compressed)} layers and {len(layer_errors)} errors")
    for i, weight in enumerate(compressed):
        check_values(f"compressed[{i}]", weight)
    if not all(error >= 0 for error in layer_errors):
        raise ValueError(f"layer errors are norms, so none is negative, got {list(layer_errors)}")
    bound = 0.0
    for weight, error in zip(compressed, layer_errors, strict=True):
        bound = float(weight.double().norm()) * bound + error
    return bound
