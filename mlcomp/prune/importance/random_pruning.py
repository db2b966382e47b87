"""Random pruning: the baseline that every criterion has to beat.

Notation: each mask with the asked number of zeros is equally likely.
Source: Liu et al. 2022, arXiv:2202.02643 (how far random masks of an untrained network go).   Syllabus: 1.17
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mlcomp.checks import check_sparsity
from mlcomp.context import isolated
from mlcomp.prune.importance.magnitude import check_weights, prune_lowest


@isolated
def random_pruning(
    weights: Mapping[str, Tensor] | Sequence[Tensor], *, sparsity: float, seed: int = 0
) -> dict[str, Tensor] | list[Tensor]:
    """Set weights of a whole network to zero, whichever.

    Args:
        weights: the layers' weights, by name or in a row, any shapes and float dtypes; not modified.
        sparsity: share of zeros over all layers together; the count is rounded half up.
        seed: of the choice; the global random state is left alone.
    Returns:
        The pruned weights, by name (dict) or in a row (list), each in its own shape and dtype.
    Raises:
        ValueError: no weights, NaN or inf, sparsity outside [0, 1]. TypeError: not floating point.
    Guarantee: exactly the asked number of weights is removed. The same seed and shapes give the same mask.
    """
    check_sparsity(sparsity)
    named = check_weights(weights)
    # A random order of all weights, drawn on the CPU so that it is the same on every device.
    total = sum(weight.numel() for weight in named.values())
    ranks = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    parts = ranks.split([weight.numel() for weight in named.values()])
    scores = {name: part.to(weight.device) for (name, weight), part in zip(named.items(), parts, strict=True)}
    pruned = prune_lowest(named, scores, sparsity)
    return pruned if isinstance(weights, Mapping) else list(pruned.values())
