r"""Granularity: which weights go together, from single ones to whole channels.

Notation: W weight (out, inp, height, width) of a convolution, or (out, inp) of a linear layer. A group G is removed
whole; its score is its energy $\sum_{i \in G} w_i^2$, what its removal adds to $\lVert W - \hat W\rVert^2$. All
groups of a layer have the same size, so the smallest ones are the best choice under a group's shape.

| granularity | a group | its dimensions |
|---|---|---|
| element | one weight | none |
| vector | one row of a kernel | width |
| kernel | all taps from one input to one output | height, width |
| filter | all weights of one output | inp, height, width |
| channel | all weights of one input | out, height, width |

In a linear layer a kernel is one weight, a filter a row and a channel a column of the matrix.
Source: Mao et al. 2017, arXiv:1705.08922 (they rank groups by the sum of magnitudes).
Syllabus: 3.05
"""

from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import check_choice, check_sparsity, check_tensor, check_values, removals
from mlcomp.context import isolated
from mlcomp.prune.pattern import smallest_mask

GRANULARITIES = ("element", "vector", "kernel", "filter", "channel")


@isolated
def group_magnitude(
    weight: Float[Tensor, "out inp *taps"], *, granularity: str, sparsity: float
) -> Float[Tensor, "out inp *taps"]:
    """Set the groups of least energy to zero.

    Args:
        weight: (out, inp) or (out, inp, *taps) of a convolution of any rank, any float dtype; not modified. Where the
            convolution has groups of its own, channel c is the c-th input of each of them.
        granularity: "element", "vector", "kernel", "filter" or "channel".
        sparsity: share of the groups that go; the count is rounded half up.
    Returns:
        The pruned weight in the shape and dtype of ``weight``; what is kept is unchanged.
    Raises:
        ValueError: a granularity or sparsity outside these, fewer than two dimensions, NaN or inf. TypeError: not
            floating point.
    Guarantee: exactly the asked number of groups is removed, ties or not (the lowest index goes first), and no other
        choice of as many groups has a smaller ‖W − Ŵ‖.
    Cost: one pass over the weight, and a sort of the groups' energies, which are summed in float64.
    """
    check_choice("granularity", granularity, GRANULARITIES)
    check_sparsity(sparsity)
    check_tensor("weight", weight)
    if weight.ndim < 2 or weight.numel() == 0:
        raise ValueError(f"weight must be a non-empty (out, inp, *taps), got shape {tuple(weight.shape)}")
    check_values("weight", weight, squared=False)
    weight = weight.detach()
    energy = weight.double().square()
    if within := group_dims(granularity, weight.ndim):
        energy = energy.sum(within, keepdim=True)
    removed = smallest_mask(energy.reshape(1, -1), removals(sparsity, energy.numel())).reshape(energy.shape)
    return weight.masked_fill(removed, 0)


def group_dims(granularity: str, ndim: int) -> tuple[int, ...]:
    """Return the dimensions of a weight with ``ndim`` dimensions over which a group extends."""
    taps = tuple(range(2, ndim))
    return {"element": (), "vector": taps[-1:], "kernel": taps, "filter": (1, *taps), "channel": (0, *taps)}[
        granularity
    ]
