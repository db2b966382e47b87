r"""Weight correction: give a pruned layer's weights back the mean and the spread that pruning took.

Notation: W dense weight, $W^s$ the same with the pruned weights set to zero, E and σ mean and (population) standard
deviation over an output channel, zeros counted; $\lambda = \sigma(W)/(\sigma(W^s) + \epsilon)$,
$W_{corr} = \lambda W^s + E(W) - E(\lambda W^s)$.
Source: Lazarevich, Kozlov, Malinin 2021, arXiv:2104.15023, the formulas before eq. (5); the authors' implementation
is the Post-Training Optimization Tool of OpenVINO.   Syllabus: 1.21
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import check_like, check_positive, check_weight, narrowed
from mlcomp.context import isolated


@isolated
def weight_correction(
    weight: Float[Tensor, "out inp"],
    pruned: Float[Tensor, "out inp"],
    *,
    exact_mean: bool = False,
    epsilon: float = 1e-9,
) -> Float[Tensor, "out inp"]:
    r"""Scale and shift the kept weights of each row (output channel).

    Args:
        weight: (out, inp), the dense weight, any float dtype, computed in float64; not modified. A convolution's is
            ``weight.flatten(1)``.
        pruned: (out, inp), zero where a weight is pruned, as any pruner of the library returns it; not modified.
        exact_mean: the formula adds its constant to every weight, which would fill the zeros again, so the zeros
            are put back afterwards. False, the authors' implementation: only the kept share p of the row gets the
            constant, so only the share p of what λ left of the gap of the means is closed. True: the constant is
            divided by p, and the row's mean is that of the dense row exactly.
        epsilon: ε > 0, in units of σ(W).
    Returns:
        (out, inp) in the dtype of ``weight``, zero where ``pruned`` is. A kept weight may become zero by chance only.
    Raises:
        ValueError: NaN or inf, other shapes, epsilon not positive.
    Guarantee: nothing pruned, nothing changed (up to ε); a row without any kept weight stays zero; scaling both
        weights by a constant scales the result.
    Deviations: in the source ε has the units of a weight. A constant row (σ = 0) has no spread to restore: λ is 0 if
        some of its weights are pruned, which gives the kept ones their dense value back.
    """
    weight = check_weight(weight)
    check_like("pruned", pruned, weight.shape, "weight")
    check_positive("epsilon", epsilon)
    w, sparse = weight.double(), pruned.detach().double()
    kept = sparse != 0
    spread, spread_sparse = (t.std(1, keepdim=True, correction=0) for t in (w, sparse))
    bottom = spread_sparse + epsilon * spread
    scale = torch.where(bottom > 0, spread / bottom.masked_fill(bottom == 0, 1), 1)
    scaled = scale * sparse
    shift = w.mean(1, keepdim=True) - scaled.mean(1, keepdim=True)
    if exact_mean:
        shift = shift / kept.double().mean(1, keepdim=True).clamp(min=1 / w.shape[1])
    return narrowed((scaled + shift).masked_fill(~kept, 0), weight.dtype)
