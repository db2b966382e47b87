r"""Random sparse starts of Erdős and Rényi: the larger a layer, the sparser.

Notation: $n_\mathrm{out} \times n_\mathrm{in}$ a layer, $d$ its density, the share of weights that are kept:
$d \propto (n_\mathrm{out} + n_\mathrm{in})/(n_\mathrm{out}\,n_\mathrm{in})$, so that every unit has about as many
connections. With kernels, $d \propto (n_\mathrm{out} + n_\mathrm{in} + k_1 + k_2)/N$ with N weights in the layer.
Source: Mocanu et al. 2018, arXiv:1707.04780, eq. (1); Evci et al. 2020, arXiv:1911.11134, section 3 (kernels, and one
density for the whole network).   Syllabus: 3.04
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mlcomp.checks import check_sparsity, removals
from mlcomp.context import isolated
from mlcomp.prune.importance.magnitude import check_weights
from mlcomp.prune.pattern import smallest_mask


def erdos_renyi_densities(shapes: Sequence[Sequence[int]], density: float) -> list[float]:
    r"""Return the density of each layer, so that the network has ``density`` in all.

    Args:
        shapes: of the weights, (out, inp) or (out, inp, \*kernel).
        density: share of all weights that are kept, 0 … 1.
    Returns:
        A density 0 … 1 for each shape. A layer that would get more than 1 is dense, and the others share the rest.
    Raises:
        ValueError: no shapes, a shape of fewer than two dimensions or without weights, a density outside [0, 1].
    Guarantee: $\sum_l d_l N_l = d \sum_l N_l$ with $N_l$ weights in layer l, up to float rounding.
    """
    check_sparsity(1 - density)
    if not shapes or any(len(shape) < 2 or math.prod(shape) < 1 for shape in shapes):
        raise ValueError(f"shapes must be of two or more dimensions, each at least 1, got {[*map(tuple, shapes)]}")
    sizes = [math.prod(shape) for shape in shapes]
    wanted = density * sum(sizes)
    full: set[int] = set()
    while True:
        rest = wanted - sum(sizes[i] for i in full)
        # A layer's raw density times its size is the sum of its dimensions.
        total = sum(sum(shape) for i, shape in enumerate(shapes) if i not in full)
        scale = rest / total if total else 0.0
        raw = [scale * sum(shape) / size for shape, size in zip(shapes, sizes, strict=True)]
        over = {i for i, d in enumerate(raw) if i not in full and d > 1}
        if not over:
            return [1.0 if i in full else d for i, d in enumerate(raw)]
        full |= over


@isolated
def erdos_renyi(
    weights: Mapping[str, Tensor] | Sequence[Tensor], *, sparsity: float, seed: int = 0
) -> dict[str, Tensor] | list[Tensor]:
    """Set random weights of each layer to zero, so many that the densities are those of Erdős and Rényi.

    Args:
        weights: the layers' weights, by name or in a row, of two or more dimensions, any float dtype; not modified.
        sparsity: share of zeros over all layers together. Each layer's count is rounded half up.
        seed: of the choice; the global random state is left alone.
    Returns:
        The pruned weights, by name (dict) or in a row (list), each in its own shape and dtype.
    Raises:
        ValueError: no weights, NaN or inf, sparsity outside [0, 1], a weight of fewer than two dimensions.
            TypeError: not floating point.
    Guarantee: within a layer each mask with the asked number of zeros is equally likely.
    """
    check_sparsity(sparsity)
    named = check_weights(weights)
    densities = erdos_renyi_densities([tuple(w.shape) for w in named.values()], 1 - sparsity)
    generator = torch.Generator().manual_seed(seed)
    pruned = {}
    for (name, weight), density in zip(named.items(), densities, strict=True):
        ranks = torch.rand(1, weight.numel(), generator=generator)  # on the CPU: the same on every device
        removed = smallest_mask(ranks, removals(1 - density, weight.numel())).reshape(weight.shape)
        pruned[name] = weight.masked_fill(removed.to(weight.device), 0)
    return pruned if isinstance(weights, Mapping) else list(pruned.values())
