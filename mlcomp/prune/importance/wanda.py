r"""Wanda: prune by weights and activations, without any update of what is kept.

Notation: W weight (out, inp), X inputs (inp, samples); the score of a weight is $|w_{ij}|\,\lVert X_j\rVert_2$,
compared within its row. $\lVert X_j\rVert$ is the square root of the j-th diagonal entry of $X X^\top$.
Source: Sun et al. 2023, arXiv:2306.11695, eq. (1) and section 3.   Syllabus: 4.09
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import check_like, check_target, check_weight, removals
from mlcomp.context import isolated
from mlcomp.prune.pattern import nm_mask, smallest_mask


@isolated
def wanda(
    weight: Float[Tensor, "out inp"],
    input_norm: Float[Tensor, " inp"],
    *,
    sparsity: float | None = None,
    pattern: tuple[int, int] | None = None,
) -> Float[Tensor, "out inp"]:
    r"""Set the weights of least $|w_{ij}|\,\lVert X_j\rVert$ in each row to zero.

    Args:
        weight: (out, inp), any float dtype; scores are computed in float64; not modified.
        input_norm: (inp,), the Euclidean norm of each input over the calibration samples, ≥ 0. Its units do not
            matter: ``hessian.diagonal().sqrt()`` serves as well.
        sparsity: share of zeros in each row; exclusive with ``pattern``. The count is rounded half up.
        pattern: (n, m), n zeros in every m consecutive inputs; a short last block of t inputs gets floor(n·t/m).
    Returns:
        (out, inp), the pruned weight in the dtype of ``weight``; what is kept is unchanged.
    Raises:
        ValueError: NaN or inf, input_norm of another length or with a negative entry, not exactly one target.
    Guarantee: every row loses the same, exact number of weights, ties or not (the lowest index goes first).
        With uncorrelated inputs the mask is the best one of its kind: the error is then the sum of the squared
        scores of what was removed.
    Dead inputs (norm 0) have score 0 and go first, but never beyond the asked number.
    """
    weight = check_weight(weight)
    check_target(sparsity, pattern)
    check_like("input_norm", input_norm, weight.shape[1:], "the weight's inputs")
    if float(input_norm.min()) < 0:
        raise ValueError("input_norm has a negative entry, so it is not a norm")
    scores = weight.double().abs() * input_norm.double()
    if pattern is not None:
        removed = nm_mask(scores, pattern)
    else:
        assert sparsity is not None  # check_target saw to it
        removed = smallest_mask(scores, removals(sparsity, weight.shape[1]))
    return torch.where(removed, torch.zeros_like(weight), weight)
