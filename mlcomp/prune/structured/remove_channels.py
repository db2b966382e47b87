r"""Cut channels out of a network, so that what is left is a smaller network of the same kind.

Notation: a channel has positions along each member of its group; cutting it deletes them. RMSNorm over n channels
divides by $\sqrt{\sum x^2/n + \varepsilon}$; of n′ left with the others at zero, gains $\gamma\sqrt{n/n'}$ and
$\varepsilon\,n/n'$ give what the n gave.
Source: Li et al. 2017, arXiv:1608.08710, section 3 (filters and what reads them); Fang et al. 2023, arXiv:2301.12900.
Syllabus: 3.08, 5.03
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from mlcomp.context import isolated, isolated_run
from mlcomp.layerwise.fit import copy_model
from mlcomp.prune.structured.dependency_graph import Group
from mlcomp.prune.structured.fold_means import fold_means
from mlcomp.prune.structured.sizes import remember_sizes, rescale_norms
from mlcomp.prune.structured.weight_axes import Axis, find_axes

Removed = Mapping[Group, Iterable[int]]


@isolated_run
def remove_channels(model: nn.Module, removed: Removed, *, fold: Iterable | None = None) -> nn.Module:
    """Return a copy of ``model`` without these channels.

    Args:
        model: not modified.
        removed: group of :func:`mlcomp.prune.dependency_groups` → the numbers of its channels to remove. At least one
            channel of a group stays, and all its ``blocks`` lose equally many.
        fold: batches to run ``model`` on. The mean that a removed channel has at the input of a layer then goes into
            that layer's bias, which is made where there is none. None: what the channel gave is dropped.
    Returns:
        The smaller network, each module in the mode it had, with the sizes that modules state (``out_features``,
        ``groups``, …) and, where all layers of a transformers model lost equally many, those of its configuration.
    Raises:
        ValueError: a channel that is not there or stands twice, all channels of a group, unequal blocks, groups of
            another model; with ``fold``, a transposed convolution among the layers that read a removed channel.
    Guarantee: up to rounding the outputs of ``model`` with all weights of these channels at zero, if no LayerNorm or
        GroupNorm averages over them (``group.averaged``; RMSNorm is rescaled, which makes it exact). With ``fold``
        the outputs of ``model`` itself, if each removed channel is a constant, as relu(β) is where γ = 0; but where a
        convolution pads with zeros the constant ends at the border, and the bias does not.
    Cost: a copy of the model; with ``fold`` a pass over the batches.
    """
    chosen = {group: _checked(group, numbers) for group, numbers in removed.items()}
    axes = {(axis.name, axis.axis): axis for axis in find_axes(model)}
    for group in chosen:
        _check_fits(group, axes)
    result = copy_model(model)
    if fold is not None:
        fold_means(model, result, chosen, fold)
    axes = {(axis.name, axis.axis): axis for axis in find_axes(result)}
    gone: dict[Axis, set[int]] = {}
    for group, numbers in chosen.items():
        for member in group.members:
            positions = {p for n in numbers for p in member.indices[n]}
            gone.setdefault(axes[member.name, member.axis], set()).update(positions)
    rescale_norms(result, chosen)
    with torch.no_grad():
        _cut_plain(result, gone)
        _cut_grouped(gone)
    remember_sizes(result, chosen)
    return result


@isolated
def group_weights(
    model: nn.Module, group: Group, values: Mapping[str, Tensor] | None = None
) -> dict[tuple[str, int], Tensor]:
    """Return the weights that a group's channels consist of, one row a channel.

    Args:
        model: not modified.
        group: of :func:`mlcomp.prune.dependency_groups`.
        values: name of a parameter → a tensor of its shape (a gradient, say) to read in its place; parameters that
            are not named are left out. None: the parameters themselves.
    Returns:
        (name of a parameter, dimension) → (channels, entries of it that go with a channel). A tied parameter stands
        under its first name only. Running statistics are no weights.
    """
    axes = {(axis.name, axis.axis): axis for axis in find_axes(model)}
    _check_fits(group, axes)
    names = {id(p): name for name, p in model.named_parameters()}
    found: dict[tuple[str, int], Tensor] = {}
    for member in group.members:
        places = torch.tensor(member.indices)
        for module, key, dim in axes[member.name, member.axis].cuts:
            tensor = getattr(module, key)
            name = names.get(id(tensor))
            if name is None or (values is not None and name not in values):
                continue
            value = tensor.detach() if values is None else values[name]
            entry = (name, _side(module, member.axis) if dim is None else dim)
            if entry not in found:
                rows = _by_channel(module, value, member.axis) if dim is None else value.movedim(dim, 0)
                found[entry] = rows[places.to(value.device)].flatten(1)
    return found


def _side(module: nn.Module, axis: str) -> int:
    """Return the dimension of a convolution's weight along which an axis lies (within each group)."""
    return int((axis == "in") != isinstance(module, _ConvTransposeNd))


def _by_channel(module: nn.Module, weight: Tensor, axis: str) -> Tensor:
    """Return the weights of a grouped convolution, a row for each channel along the axis that is split by groups."""
    assert isinstance(module, _ConvNd)
    grouped = weight.reshape(module.groups, -1, *weight.shape[1:])
    return grouped.movedim(2, 1).flatten(0, 1).flatten(1)


def _checked(group: Group, numbers: Iterable[int]) -> tuple[int, ...]:
    chosen = tuple(numbers)
    first = f"{group.members[0].name!r} ({group.channels} channels)"
    if any(isinstance(n, bool) or not isinstance(n, int) or not 0 <= n < group.channels for n in chosen):
        raise ValueError(f"the channels of {first} are whole numbers from 0 to {group.channels - 1}, got {chosen}")
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"a channel of {first} stands twice in {chosen}")
    if len(chosen) == group.channels:
        raise ValueError(f"at least one channel of {first} has to stay")
    for block in group.blocks:
        counts = [sum(block[n] == b for n in chosen) for b in sorted(set(block))]
        if len(set(counts)) > 1:
            raise ValueError(
                f"{first}: a grouped layer needs equally many channels in each of its {len(counts)} blocks, and "
                f"{counts} would be removed from them"
            )
    return chosen


def _check_fits(group: Group, axes: Mapping[tuple[str, str], Axis]) -> None:
    for member in group.members:
        axis = axes.get((member.name, member.axis))
        if axis is None or max(map(max, member.indices)) >= axis.size:
            raise ValueError(
                f"the group of {group.members[0].name!r} is not of this model: {member.name!r} has "
                + (f"no axis {member.axis!r}" if axis is None else f"{axis.size} positions along {member.axis!r}")
            )


def _cut_plain(model: nn.Module, gone: Mapping[Axis, set[int]]) -> None:
    """Cut all other tensors along their dimensions; a tied one is cut once, and stays tied."""
    cuts: dict[int, dict[int, set[int]]] = {}
    for axis, positions in gone.items():
        for module, key, dim in axis.cuts:
            if dim is not None and not _is_grouped(module, key):
                cuts.setdefault(id(getattr(module, key)), {}).setdefault(dim, set()).update(positions)
    done: dict[int, Tensor] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for key, tensor in list(held.items()):
                if tensor is None or id(tensor) not in cuts:
                    continue
                if id(tensor) not in done:
                    cut: Any = tensor.detach()
                    for dim, positions in cuts[id(tensor)].items():
                        cut = cut.index_select(dim, _kept(cut.shape[dim], positions).to(cut.device))
                    kind = isinstance(tensor, nn.Parameter)
                    done[id(tensor)] = nn.Parameter(cut, tensor.requires_grad) if kind else cut
                setattr(module, key, done[id(tensor)])


def _cut_grouped(gone: Mapping[Axis, set[int]]) -> None:
    """Cut the weights of grouped convolutions: within each group on one side, by channels on the other."""
    sides: dict[nn.Module, dict[str, set[int]]] = {}
    for axis, positions in gone.items():
        for module, key, _ in axis.cuts:
            if _is_grouped(module, key):
                sides.setdefault(module, {})[axis.axis] = positions
    for module, both in sides.items():
        assert isinstance(module, _ConvNd)
        inputs = _kept(module.in_channels, both.get("in", ()))
        outputs = _kept(module.out_channels, both.get("out", ()))
        rows, columns = (inputs, outputs) if isinstance(module, _ConvTransposeNd) else (outputs, inputs)
        weight = module.weight
        if module.in_channels == module.groups:  # depthwise: a group has one input, and goes with it
            cut = weight[rows.to(weight.device)]
            module.groups = len(inputs)
        else:
            parts = weight.reshape(module.groups, -1, *weight.shape[1:])
            height, width = parts.shape[1:3]
            blocks = zip(parts, rows.chunk(module.groups), columns.chunk(module.groups), strict=True)
            cut = torch.cat([part[i % height][:, j % width] for part, i, j in blocks])
        module.in_channels, module.out_channels = len(inputs), len(outputs)
        module.weight = nn.Parameter(cut, weight.requires_grad)


def _is_grouped(module: nn.Module, key: str) -> bool:
    return isinstance(module, _ConvNd) and module.groups > 1 and key == "weight"


def _kept(size: int, gone: Iterable[int]) -> Tensor:
    mask = torch.ones(size, dtype=torch.bool)
    mask[sorted(gone)] = False
    return mask.nonzero().flatten()
