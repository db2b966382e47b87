r"""What a transformer can lose at every level: whole sublayers, their units, dimensions of the residual stream.

Notation: the residual stream has d dimensions; attention and feed-forward layers (sublayers) read it through a norm
and add to it. A unit of a sublayer is a head or an intermediate unit. Gates z scale the outputs of sublayer i
($z_i$), of its unit j ($z_{ij}$) and dimension k of the stream ($z_k$), wherever something is added to it. A unit has
$c_i$ weights for each dimension: $4d_h$ for a head of $d_h$ dimensions (query, key, value, output), 2 for an
intermediate unit of an ungated layer. What is left of the matrices is $\sum_i c_i z_i \sum_j z_{ij} \sum_k z_k$
weights for gates that are 0 or 1, and on average for independent ones with these probabilities of being open.
Source: Xia, Zhong, Chen 2022, arXiv:2204.00408, section 3.1 (masks) and eq. (2) (expected size).   Syllabus: 4.11
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mlcomp.checks import check_floating
from mlcomp.context import isolated, isolated_run
from mlcomp.layerwise.fit import copy_model
from mlcomp.layerwise.running import hooked
from mlcomp.prune.structured.dependency_graph import Group, dependency_groups
from mlcomp.prune.structured.remove_channels import remove_channels


@dataclass(frozen=True)
class Sublayer:
    """An attention or feed-forward layer.

    Attributes:
        units: the channels between its linear layers: heads or intermediate units.
        writer: name of the layer that adds to the stream.
        readers: names of those that read it.
        cost: weights of a unit for each dimension of the stream, in readers and writer together.
    """

    units: Group
    writer: str
    readers: tuple[str, ...]
    cost: int


@dataclass(frozen=True)
class ResidualStream:
    """The dimensions of the stream, and its sublayers in the order of the model's modules.

    Attributes:
        sources: names of the other modules that add to the stream (the embedding).
        norms: names of the norms that average over the stream.
    """

    dimensions: Group
    sublayers: tuple[Sublayer, ...]
    sources: tuple[str, ...]
    norms: tuple[str, ...]


@dataclass(frozen=True)
class Gates:
    """A number for each thing that can go: gates, the probabilities that they are open, or whatever it says of them.

    Attributes:
        layers: (sublayers,).
        units: for each sublayer (its units,).
        dimensions: (dimensions of the stream,).
    """

    layers: Tensor
    units: tuple[Tensor, ...]
    dimensions: Tensor

    def map(self, function: Any) -> "Gates":
        """Return what ``function`` makes of each of the tensors."""
        return Gates(function(self.layers), tuple(map(function, self.units)), function(self.dimensions))


@isolated_run
def residual_stream(model: nn.Module, batch: Any) -> ResidualStream:
    """Return the stream and the sublayers of a transformer.

    Args:
        model: not modified; run once on ``batch``, see :func:`mlcomp.prune.dependency_groups`.
    Raises:
        ValueError: there is none: channels that a norm averages over (they must not be what the model returns), and
            linear layers that read them and, through units of their own, add to them.
    """
    groups = dependency_groups(model, batch)
    streams = [group for group in groups if group.averaged]
    if not streams:
        raise ValueError(
            f"{type(model).__name__} has no residual stream that could be narrowed: channels behind which a norm "
            "stands and that are not what the model returns"
        )
    stream = max(streams, key=lambda group: len(group.members))
    inside = {(m.name, m.axis) for m in stream.members}
    found = [sublayer for group in groups if (sublayer := _sublayer(model, group, inside)) is not None]
    if not found:
        raise ValueError(f"no linear layers of {type(model).__name__} read the stream and add to it through units")
    writers = {sublayer.writer for sublayer in found}
    others = [m.name for m in stream.members if m.axis == "out" and m.name not in {*writers, *stream.averaged}]
    return ResidualStream(stream, tuple(found), tuple(others), stream.averaged)


def _sublayer(model: nn.Module, group: Group, stream: set[tuple[str, str]]) -> Sublayer | None:
    """Return the group as units of a sublayer; None if it is none."""
    if not all(isinstance(_module(model, m.name), nn.Linear) for m in group.members):
        return None
    writers = [m for m in group.members if m.axis == "in" and (m.name, "out") in stream]
    readers = [m for m in group.members if m.axis == "out" and (m.name, "in") in stream]
    if len(writers) != 1 or not readers or len(readers) + 1 < len(group.members):
        return None
    columns = sorted(p for places in writers[0].indices for p in places)
    if columns != list(range(model.get_submodule(writers[0].name).in_features)):  # type: ignore[arg-type]
        return None
    cost = sum(len(m.indices[0]) for m in group.members)
    return Sublayer(group, writers[0].name, tuple(m.name for m in readers), cost)


def _module(model: nn.Module, name: str) -> nn.Module | None:
    return dict(model.named_modules()).get(name)


@isolated
def open_gates(stream: ResidualStream) -> Gates:
    """Return gates that are all 1."""
    units = tuple(torch.ones(sublayer.units.channels) for sublayer in stream.sublayers)
    return Gates(torch.ones(len(units)), units, torch.ones(stream.dimensions.channels))


@isolated
def gated_size(stream: ResidualStream, gates: Gates) -> Tensor:
    """Return the weights left in the sublayers' matrices, a differentiable scalar.

    Args:
        gates: 0 or 1, or probabilities of independent gates: then it is the expected number.
    Raises:
        ValueError: gates of another stream.
    """
    check_gates(stream, gates)
    parts = zip(stream.sublayers, gates.layers, gates.units, strict=True)
    total = torch.stack([sublayer.cost * layer * units.sum() for sublayer, layer, units in parts]).sum()
    return total * gates.dimensions.sum()


@contextmanager
def gating(model: nn.Module, stream: ResidualStream, gates: Gates) -> Iterator[None]:
    """Multiply by the gates whatever runs through ``model`` meanwhile; gradients go to gates and weights.

    A bias of a layer that adds to the stream is no part of its units: it stays.
    """
    handles = []
    for sublayer, layer, units in zip(stream.sublayers, gates.layers, gates.units, strict=True):
        columns = layer * units[_unit_of_column(sublayer).to(units.device)]
        writer = model.get_submodule(sublayer.writer)
        handles.append(writer.register_forward_pre_hook(partial(_scale_input, columns)))
    for name in (*(sublayer.writer for sublayer in stream.sublayers), *stream.sources):
        handles.append(model.get_submodule(name).register_forward_hook(partial(_scale_output, gates.dimensions)))
    with hooked(handles):
        yield


def _scale_input(columns: Tensor, module: nn.Module, args: tuple) -> tuple:
    return (args[0] * columns, *args[1:])


def _scale_output(dimensions: Tensor, module: nn.Module, args: tuple, out: Tensor) -> Tensor:
    return out * dimensions


def _unit_of_column(sublayer: Sublayer) -> Tensor:
    """Return the number of the unit to which each input of the writer belongs."""
    places = sublayer.units.member(sublayer.writer, "in").indices
    unit = torch.empty(sum(map(len, places)), dtype=torch.int64, device="cpu")
    for number, columns in enumerate(places):
        unit[list(columns)] = number
    return unit


@isolated_run
def remove_gated(model: nn.Module, stream: ResidualStream, gates: Gates) -> nn.Module:
    """Return a copy of ``model`` without all that has a gate of zero, the other gates folded into its weights.

    Args:
        model: not modified.
        stream: of :func:`residual_stream`.
        gates: not negative. A sublayer with a gate of zero, or all of whose units have one, is left with layers of
            size zero, a norm that nothing reads, and the bias of its writer.
    Raises:
        ValueError: gates of another stream; no dimension is left; a gate between 0 and 1 (other than the rest) for a
            dimension over which a LayerNorm averages, or any zero there: a removed channel changes its mean.
    Guarantee: the outputs of ``model`` under :func:`gating`, up to rounding: RMSNorm is rescaled for what is gone
        (:func:`mlcomp.prune.remove_channels`). In the matrices of the sublayers ``gated_size`` weights are left.
    """
    check_gates(stream, gates)
    gates = gates.map(lambda z: z.detach())
    if not bool((gates.dimensions > 0).any()):
        raise ValueError("all dimensions of the stream have a gate of zero, and one has to stay")
    if bool((gates.dimensions != 1).any()):
        check_norms(model, stream)
    result = copy_model(model)
    _fold(result, stream, gates)
    removed: dict[Group, list[int]] = {stream.dimensions: _closed(gates.dimensions)}
    empty = []
    for sublayer, layer, units in zip(stream.sublayers, gates.layers, gates.units, strict=True):
        closed = _closed(layer * units)
        if len(closed) == len(units):
            empty.append(sublayer)
            closed.pop()
        removed[sublayer.units] = closed
    result = remove_channels(result, removed)
    for sublayer in empty:
        _empty(result, sublayer)
    return result


def check_norms(model: nn.Module, stream: ResidualStream) -> None:
    """Raise unless dimensions of the stream can go: what averages over them is RMSNorm."""
    other = [name for name in stream.norms if not type(model.get_submodule(name)).__name__.endswith("RMSNorm")]
    if other:
        raise ValueError(
            f"{other[0]!r} is a {type(model.get_submodule(other[0])).__name__}: it averages over the dimensions of "
            "the stream, so one that is gone is not one at zero; leave these gates at 1"
        )


@torch.no_grad()
def _fold(model: nn.Module, stream: ResidualStream, gates: Gates) -> None:
    """Put all gates into weights, in place."""
    for sublayer, layer, units in zip(stream.sublayers, gates.layers, gates.units, strict=True):
        writer: Any = model.get_submodule(sublayer.writer)
        writer.weight.mul_((layer * units)[_unit_of_column(sublayer)].to(writer.weight))
        for tensor in (writer.weight, writer.bias):
            if tensor is not None:
                tensor.mul_(gates.dimensions.to(tensor).reshape(-1, *(1,) * (tensor.ndim - 1)))
    for name in stream.sources:
        source: Any = model.get_submodule(name)
        source.weight.mul_(gates.dimensions.to(source.weight))
    tied = _head_norm(model, stream)
    if tied is not None:
        z = gates.dimensions.to(tied.weight)
        tied.weight.div_(torch.where(z > 0, z, torch.ones_like(z)))


def _head_norm(model: nn.Module, stream: ResidualStream) -> Any:
    """Return the last norm, if what it gives is multiplied by the embedding again: it takes the gates back there."""
    tensors = {id(model.get_submodule(name).weight) for name in stream.sources}
    inner = {name for sublayer in stream.sublayers for name in sublayer.readers}
    heads = [m.name for m in stream.dimensions.members if m.axis == "in" and m.name not in inner]
    tied = not heads or any(id(model.get_submodule(name).weight) in tensors for name in heads)
    return model.get_submodule(stream.norms[-1]) if tied else None


def _closed(gates: Tensor) -> list[int]:
    return (gates <= 0).nonzero().flatten().tolist()


def _empty(model: nn.Module, sublayer: Sublayer) -> None:
    """Take the last unit out of a sublayer, in place."""
    for name in sublayer.readers:
        layer: Any = model.get_submodule(name)
        layer.weight, layer.out_features = nn.Parameter(layer.weight.detach()[:0]), 0
        if layer.bias is not None:
            layer.bias = nn.Parameter(layer.bias.detach()[:0])
    writer: Any = model.get_submodule(sublayer.writer)
    writer.weight, writer.in_features = nn.Parameter(writer.weight.detach()[:, :0]), 0


def check_gates(stream: ResidualStream, gates: Gates) -> None:
    """Raise unless there is a gate, not negative, for each thing that the stream can lose."""
    if not isinstance(gates, Gates):
        raise TypeError(f"gates must be a Gates, got {type(gates).__name__}")
    wanted = open_gates(stream)
    pairs = [(gates.layers, wanted.layers), (gates.dimensions, wanted.dimensions)]
    if len(gates.units) != len(wanted.units):
        raise ValueError(f"the stream has {len(wanted.units)} sublayers, and the gates units for {len(gates.units)}")
    for given, like in (*pairs, *zip(gates.units, wanted.units, strict=True)):
        check_floating("gates", given)
        if given.shape != like.shape:
            raise ValueError(f"gates must be {tuple(like.shape)} for what there is to gate, got {tuple(given.shape)}")
        if not bool((given >= 0).all()):
            raise ValueError(f"gates must not be negative or NaN, got {float(given.min())}")
