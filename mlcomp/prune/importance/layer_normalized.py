r"""Layer-normalized magnitude: rank all weights of a network by their share of their own layer's norm.

Notation: $w_i^l$ weight i of layer l; $I(w_i^l) = |w_i^l| / \sqrt{\sum_{j \in l} |w_j^l|^2}$. The scores of
a layer have unit norm, so its mean square score is 1/(number of its weights): a large layer is pruned harder, the
*scale* of a layer does not matter.
Source: Lazarevich, Kozlov, Malinin 2021, arXiv:2104.15023.   Syllabus: 1.20
"""

from collections.abc import Mapping, Sequence
from typing import overload

from torch import Tensor

from mlcomp.checks import check_sparsity
from mlcomp.context import isolated
from mlcomp.prune.importance.magnitude import check_weights, prune_lowest


@overload
def layer_normalized(weights: Mapping[str, Tensor], *, sparsity: float) -> dict[str, Tensor]: ...
@overload
def layer_normalized(weights: Sequence[Tensor], *, sparsity: float) -> list[Tensor]: ...
@isolated
def layer_normalized(
    weights: Mapping[str, Tensor] | Sequence[Tensor], *, sparsity: float
) -> dict[str, Tensor] | list[Tensor]:
    r"""Set the weights of least $|w|/\lVert w_{layer}\rVert$ of a whole network to zero.

    Args:
        weights: the layers' weights, by name or in a row, any shapes and float dtypes; not modified. Scores are
            computed in float64.
        sparsity: share of zeros over all layers together; the count is rounded half up.
    Returns:
        The pruned weights, by name (dict) or in a row (list), each in its own shape and dtype.
    Raises:
        ValueError: no weights, NaN or inf, sparsity outside [0, 1]. TypeError: not floating point.
    Guarantee: exactly the asked number of weights is removed over all layers; ties go by layer, then by index.
        Multiplying a layer's weights by a positive power of two changes no mask.
    A layer that is zero everywhere has score 0: it goes first, and nothing is lost with it.
    """
    check_sparsity(sparsity)
    named = check_weights(weights)
    pruned = prune_lowest(named, {name: _scores(weight) for name, weight in named.items()}, sparsity)
    return pruned if isinstance(weights, Mapping) else list(pruned.values())


def _scores(weight: Tensor) -> Tensor:
    magnitudes = weight.double().abs().flatten()
    largest = magnitudes.max() if len(magnitudes) else magnitudes.sum()
    if largest == 0:
        return magnitudes
    magnitudes = magnitudes / largest  # so that no square under- or overflows
    return magnitudes / magnitudes.norm()
