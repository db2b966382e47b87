r"""The channels of a group in another order, and a network that computes the same.

The inputs of a layer are the outputs of others. With P a permutation matrix,
$W_2\,f(W_1 x + b) = (W_2 P^\top)\,f(P W_1 x + P b)$ for every f that treats all channels alike. So the columns of the
layer and the rows of whatever makes its inputs are put in the same order, and so is what stands between and has a
number for each channel, BatchNorm or a depthwise convolution: the members of a dependency group.

Source: Pool and Yu 2021, "Channel Permutations for N:M Sparsity" (NeurIPS).   Syllabus: 3.07
"""

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from mlcomp.context import isolated
from mlcomp.layerwise.fit import copy_model
from mlcomp.prune.importance.channel_permutation import check_permutation
from mlcomp.prune.structured.dependency_graph import Group
from mlcomp.prune.structured.weight_axes import find_axes


@isolated
def permute_channels(model: nn.Module, group: Group, permutation: Int64[Tensor, " channels"]) -> nn.Module:
    """Return a copy of ``model`` with the channels of a group in another order, which computes the same.

    Args:
        model: not modified.
        group: from :func:`mlcomp.prune.dependency_groups` of this model.
        permutation: (channels,): channel k becomes the old channel permutation[k]. To find a good one, pass
            ``group_weights(model, group)[name, 1].T`` of a layer that reads these channels ("name" is that of its
            weight) to :func:`channel_permutation`, or of several layers all rows together.
    Raises:
        ValueError: ``permutation`` is none of the group's channels; it moves channels from one group of a grouped
            convolution to another; the group is not of this model.
    Guarantee: up to rounding the copy computes what the model does: sums over the channels have another order.
    Cost: a copy of the model.
    """
    order = check_permutation(permutation, group.channels).tolist()
    for block in group.blocks:
        if any(block[old] != block[new] for new, old in enumerate(order)):
            first = group.members[0].name
            raise ValueError(f"a grouped layer divides the channels of {first!r}, and this order mixes its blocks")
    result = copy_model(model)
    axes = {(axis.name, axis.axis): axis for axis in find_axes(result)}
    moved: set[tuple[int, int]] = set()  # a tied tensor is put in order once
    for member in group.members:
        axis = axes.get((member.name, member.axis))
        if axis is None or max(map(max, member.indices)) >= axis.size:
            raise ValueError(f"the group is not of this model: {member.name!r} has no such axis {member.axis!r}")
        places = torch.arange(axis.size)
        new = [place for places_of in member.indices for place in places_of]
        places[new] = torch.tensor([place for old in order for place in member.indices[old]])
        for module, key, dim in axis.cuts:
            tensor = getattr(module, key)
            if (id(tensor), -1 if dim is None else dim) not in moved:
                moved.add((id(tensor), -1 if dim is None else dim))
                _reorder(module, tensor.data, dim, places.to(tensor.device))
    return result


def _reorder(module: nn.Module, tensor: Tensor, dim: int | None, places: Int64[Tensor, " size"]) -> None:
    """Put a tensor's entries along one dimension in order, in place; None: the inputs of a grouped convolution."""
    if dim is not None:
        tensor.copy_(tensor.index_select(dim, places))
        return
    # Its weight is a matrix of small matrices, one a group, whose columns these are; transposed or not.
    assert isinstance(module, _ConvNd)
    orders = places.reshape(module.groups, -1) % (len(places) // module.groups)
    for part, order in zip(tensor.chunk(module.groups), orders, strict=True):
        part.copy_(part.index_select(1, order))
