"""What removed channels gave on average goes into the biases of the layers that read them.

A channel that is a constant, such as relu(β) behind a BatchNorm with γ = 0, is replaced exactly, but for the borders
that a convolution pads with zeros. For any other channel the mean is the constant of least squared error.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from mlcomp.layerwise.inputs import watching
from mlcomp.layerwise.matrix import Layer, TurnedLinear, find_layer, is_layer
from mlcomp.layerwise.running import call_model, check_batches, check_called
from mlcomp.modes import evaluating
from mlcomp.prune.structured.dependency_graph import Group


@torch.no_grad()
def fold_means(
    model: nn.Module, result: nn.Module, removed: Mapping[Group, tuple[int, ...]], batches: Iterable
) -> None:
    """Add to the biases of ``result``, a copy of ``model`` that is not cut yet, what the removed channels give."""
    check_batches(batches)
    readers = _readers(model, removed)
    for name, mean in _input_means(model, list(readers), batches).items():
        layer: Any = find_layer(result, name)
        given = torch.zeros_like(mean)
        given[readers[name]] = mean[readers[name]]
        shift = _response(layer, given).to(layer.weight.dtype)
        if layer.bias is None:
            layer.bias = nn.Parameter(shift, layer.weight.requires_grad)
        else:
            layer.bias.add_(shift)


def _readers(model: nn.Module, removed: Mapping[Group, tuple[int, ...]]) -> dict[str, list[int]]:
    """Return name → input channels that go, of each layer that stays; a depthwise one goes with its channels."""
    readers: dict[str, list[int]] = {}
    modules = dict(model.named_modules())
    for group, numbers in removed.items():
        for member in group.members if numbers else ():
            layer = modules.get(member.name)
            if member.axis != "in" or layer is None or not is_layer(layer):
                continue
            if isinstance(layer, _ConvNd) and layer.groups == layer.in_channels > 1:
                continue
            if isinstance(layer, _ConvTransposeNd):
                raise ValueError(
                    f"{member.name!r} is a transposed convolution, whose outputs do not all read as many inputs: its "
                    "share of a constant is no bias, so leave fold out"
                )
            readers.setdefault(member.name, []).extend(p for n in numbers for p in member.indices[n])
    return readers


def _input_means(model: nn.Module, names: list[str], batches: Iterable) -> dict[str, Tensor]:
    """Return the mean of each channel at the inputs of layers, float64."""
    layers = {name: find_layer(model, name) for name in names}
    sums: dict[str, Any] = dict.fromkeys(names, 0)
    counts = dict.fromkeys(names, 0)

    def see(name: str, x: Tensor) -> None:
        layer = layers[name]
        channels = x.ndim - layer.weight.ndim + 1 if isinstance(layer, _ConvNd) else -1
        rows = x.double().movedim(channels, 0).flatten(1)
        sums[name] = sums[name] + rows.sum(1)
        counts[name] += rows.shape[1]

    with evaluating(model), watching(model, layers, see):
        for batch in batches:
            call_model(model, batch)
    if names:
        check_called(counts)
    return {name: total / counts[name] for name, total in sums.items()}


def _response(layer: Layer, given: Tensor) -> Tensor:
    """Return what the layer adds up for a constant input, away from padded borders."""
    weight = layer.weight.double()
    if isinstance(layer, TurnedLinear):
        return given @ weight
    taps = weight.flatten(2).sum(2) if weight.ndim > 2 else weight
    groups = layer.groups if isinstance(layer, _ConvNd) else 1
    parts = taps.reshape(groups, -1, taps.shape[1]), given.reshape(groups, -1)
    return torch.einsum("goi,gi->go", *parts).flatten()
