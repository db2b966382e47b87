r"""Magnitude pruning: the smallest weights go, of a matrix or of a whole network.

Notation: W weight; the score of a weight is $|w|$.
Source: Han et al. 2015, arXiv:1506.02626 (a layer); Zhu and Gupta 2017, arXiv:1710.01878 (GMP); the global
threshold over layers is the baseline "GMP" of Frantar et al. 2022, arXiv:2208.11580, section 6.
Syllabus: 2.07, 3.07, 4.09
"""

from collections.abc import Mapping, Sequence
from typing import overload

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import (
    check_choice,
    check_finite,
    check_floating,
    check_sparsity,
    check_target,
    check_weight,
    removals,
)
from mlcomp.context import isolated
from mlcomp.prune.pattern import nm_mask, smallest_mask


@isolated
def magnitude(
    weight: Float[Tensor, "out inp"],
    *,
    sparsity: float | None = None,
    pattern: tuple[int, int] | None = None,
    scope: str = "tensor",
) -> Float[Tensor, "out inp"]:
    """Set the weights of least magnitude to zero.

    Args:
        weight: (out, inp), any float dtype; not modified.
        sparsity: share of zeros; exclusive with ``pattern``. The count is rounded half up.
        pattern: (n, m), n zeros in every m consecutive inputs; a short last block of t inputs gets floor(n·t/m).
        scope: with ``sparsity``, compare weights over the whole "tensor" or within each "row".
    Returns:
        (out, inp), the pruned weight in the dtype of ``weight``; what is kept is unchanged.
    Raises:
        ValueError: NaN or inf in weight, not exactly one of sparsity and pattern, an unknown scope.
    Guarantee: exactly the asked number of weights is removed, ties or not (the lowest index goes first), and
        among all masks with those counts this one has the least ‖W − Ŵ‖.
    """
    weight = check_weight(weight)
    check_target(sparsity, pattern)
    check_choice("scope", scope, ("tensor", "row"))
    scores = weight.abs()
    if pattern is not None:
        removed = nm_mask(scores, pattern)
    else:
        assert sparsity is not None  # check_target saw to it
        compared = scores if scope == "row" else scores.reshape(1, -1)
        removed = smallest_mask(compared, removals(sparsity, compared.shape[1])).reshape(weight.shape)
    return weight.masked_fill(removed, 0)


@overload
def global_magnitude(weights: Mapping[str, Tensor], *, sparsity: float) -> dict[str, Tensor]: ...
@overload
def global_magnitude(weights: Sequence[Tensor], *, sparsity: float) -> list[Tensor]: ...
@isolated
def global_magnitude(
    weights: Mapping[str, Tensor] | Sequence[Tensor], *, sparsity: float
) -> dict[str, Tensor] | list[Tensor]:
    """Set the smallest weights of a whole network to zero: one threshold for all layers.

    Args:
        weights: the layers' weights, by name or in a row, any shapes and float dtypes; not modified. Magnitudes
            of different dtypes are compared by value.
        sparsity: share of zeros over all layers together; the count is rounded half up.
    Returns:
        The pruned weights, by name (dict) or in a row (list), each in its own shape and dtype.
    Raises:
        ValueError: no weights, NaN or inf, sparsity outside [0, 1]. TypeError: not floating point.
    Guarantee: exactly the asked number of weights is removed over all layers; ties go by layer, then by index.
    """
    check_sparsity(sparsity)
    named = check_weights(weights)
    # The ranking's torch.cat promotes to the widest dtype, which holds the magnitudes of the narrower ones exactly.
    pruned = prune_lowest(named, {name: weight.abs() for name, weight in named.items()}, sparsity)
    return pruned if isinstance(weights, Mapping) else list(pruned.values())


def check_weights(weights: Mapping[str, Tensor] | Sequence[Tensor]) -> Mapping:
    """Return a network's weights as a mapping (numbered if they came in a row); raise unless each is one."""
    named = weights if isinstance(weights, Mapping) else dict(enumerate(weights))
    if not named:
        raise ValueError("weights is empty: there is nothing to prune")
    for name, weight in named.items():
        check_floating(f"weights[{name!r}]", weight)
        check_finite(f"weights[{name!r}]", weight)
    return {name: weight.detach() for name, weight in named.items()}


def prune_lowest(weights: Mapping, scores: Mapping, sparsity: float) -> dict:
    """Zero the weights of least score in one ranking of all layers: an exact count, ties by layer, then by index."""
    together = torch.cat([scores[name].flatten() for name in weights])
    removed = smallest_mask(together, removals(sparsity, len(together)))
    parts = removed.split([weight.numel() for weight in weights.values()])
    return {
        name: weight.masked_fill(part.reshape(weight.shape), 0)
        for (name, weight), part in zip(weights.items(), parts, strict=True)
    }
