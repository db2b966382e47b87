"""Which rows, columns and entries of a network's weights must be removed together: its dependency groups.

A channel is an output row of one layer, and with it an input column of each layer that reads it, an entry of each
norm on the way, and the same of every layer whose outputs are added to its own or multiplied with them. Running the
model once shows which these are (:mod:`mlcomp.prune.structured.channel_labels`), whatever code it consists of.

Source: Fang et al. 2023, arXiv:2301.12900 (dependency graph); Ma, Fang, Wang 2023, arXiv:2305.11627, section 3.1
(coupled structures of language models).   Syllabus: 3.08, 5.03
"""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mlcomp.context import isolated_run
from mlcomp.layerwise.running import call_model, hooked
from mlcomp.modes import evaluating
from mlcomp.prune.structured.channel_labels import LabelTrace
from mlcomp.prune.structured.channel_rules import fix_all, tensors
from mlcomp.prune.structured.channel_tracing import ChannelTracing
from mlcomp.prune.structured.weight_axes import Axis, find_axes


@dataclass(frozen=True)
class Member:
    """One axis of one module, and where each channel of the group lies along it.

    Attributes:
        name: of the module; of the parameter where the module is of no known kind.
        axis: "out" (rows of a weight, entries of a norm, columns of an embedding) or "in" (columns of a weight, rows
            of an embedding); the number of the dimension for a parameter with several in a module of no known kind.
        indices: for each channel the positions along the axis: a convolution's channel before a flatten is several
            columns of the linear layer after it, a head is as many rows as it has dimensions.
    """

    name: str
    axis: str
    indices: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Group:
    """Channels that are alike: removing one takes its positions along every member.

    Attributes:
        members: in the order of ``model.named_modules()``, "out" before "in".
        blocks: for each grouped convolution among the members the block in which each channel lies. Every block must
            lose equally many.
        averaged: names of the modules that average over these channels (LayerNorm, RMSNorm): there a removed channel
            is not a channel at zero.
    """

    members: tuple[Member, ...]
    blocks: tuple[tuple[int, ...], ...] = ()
    averaged: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        """How many channels the group has."""
        return len(self.members[0].indices)

    def member(self, name: str, axis: str = "out") -> Member:
        """Return the member of this name and axis.

        Raises:
            ValueError: there is none.
        """
        for member in self.members:
            if (member.name, member.axis) == (name, axis):
                return member
        raise ValueError(f"{name!r} has no {axis!r} in this group, which holds {[m.name for m in self.members]}")


@isolated_run
def dependency_groups(model: nn.Module, batch: Any) -> tuple[Group, ...]:
    """Return the groups of channels that can be removed from ``model``, in the order of their first members.

    Args:
        model: run once, in eval mode without gradients; not modified. Any module whose sizes follow from its weights.
        batch: one batch (a tensor, a tuple of positional or a mapping of keyword arguments); a small one will do.
    Returns:
        Every channel of the model that is not in :func:`fixed_channels`, each in one group. Channels with the same
        members, and the same number of positions in each, are one group.
    Raises:
        ValueError: as the model, and where a batch does not fit it.
    Guarantee: the group of a channel is the same whichever member one starts from: being removed together is an
        equivalence relation. Removing channels (:func:`mlcomp.prune.remove_channels`) gives the outputs of the whole
        model with these channels at zero, unless ``averaged`` names a module.
    Cost: one forward pass, and about a microsecond for each channel and operation: a few seconds for 30 layers
        of 135 million parameters.
    """
    return _Grouping(*_traced(model, batch)).groups()


@isolated_run
def fixed_channels(model: nn.Module, batch: Any) -> dict[str, str]:
    """Return "name.axis" → why no channel of it can be removed, for each axis with such channels.

    Args:
        model, batch: as for :func:`dependency_groups`.
    """
    return _Grouping(*_traced(model, batch)).fixed()


def find_group(groups: Iterable[Group], name: str, axis: str = "out", index: int = 0) -> Group:
    """Return the group to which one position along the axis of a module belongs.

    Raises:
        ValueError: no group holds it.
    """
    for group in groups:
        for member in group.members:
            if (member.name, member.axis) == (name, axis) and any(index in places for places in member.indices):
                return group
    raise ValueError(f"no group holds position {index} of {name!r} along {axis!r}: is it fixed? See fixed_channels")


def _traced(model: nn.Module, batch: Any) -> tuple[LabelTrace, list[tuple[Axis, Tensor]]]:
    """Run the model with labels on its weights; return them with the labels of each axis."""
    trace = LabelTrace()
    axes = _label(trace, model)
    names = {id(module): name for name, module in model.named_modules()}
    running: list[str] = []

    def before(module: nn.Module, args: tuple) -> None:
        running.append(names[id(module)])
        trace.module = running[-1]

    def after(module: nn.Module, args: tuple, out: Any) -> None:
        running.pop()
        trace.module = running[-1] if running else ""

    handles = [m.register_forward_pre_hook(before) for m in model.modules()]
    handles += [m.register_forward_hook(after) for m in model.modules()]
    fused = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(hooked(handles))
        stack.callback(torch.backends.mha.set_fastpath_enabled, fused)
        torch.backends.mha.set_fastpath_enabled(False)  # one operation for a whole layer shows nothing of it
        stack.enter_context(evaluating(model))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(ChannelTracing(trace))
        out = call_model(model, batch)
    for returned in tensors(_parts(out)):
        fix_all(trace, returned, "they are what the model returns")
    return trace, axes


def _parts(value: Any) -> Any:
    """Return what a model returns as nested lists and tuples, from mappings and dataclasses, too."""
    if is_dataclass(value) and not isinstance(value, Mapping | type):
        return [_parts(getattr(value, field.name)) for field in fields(value)]
    values = value.values() if isinstance(value, Mapping) else value
    return [_parts(v) for v in values] if isinstance(value, Mapping | list | tuple) else value


def _label(trace: LabelTrace, model: nn.Module) -> list[tuple[Axis, Tensor]]:
    """Give every axis new labels, or those that a tied tensor has there already."""
    known: dict[tuple[int, int], Tensor] = {}
    axes = []
    sides: dict[int, dict[str, Tensor]] = {}
    for axis in find_axes(model):
        held = [(getattr(module, key), dim) for module, key, dim in axis.cuts]
        present = [known[id(t), d] for t, d in held if d is not None and (id(t), d) in known]
        labels = present[0] if present else trace.new(axis.size)
        for other in present[1:]:
            trace.join(labels, other)
        if axis.size == 1:
            trace.fix(labels, "it is the only one, and one has to stay")
        for tensor, dim in held:
            sides.setdefault(id(tensor), {})[axis.axis] = labels
            if dim is not None:
                known[id(tensor), dim] = labels
                trace.put(tensor, trace.get(tensor) | {dim: labels})
        axes.append((axis, labels))
    trace.channels = {key: (both["in"], both["out"]) for key, both in sides.items() if {"in", "out"} <= set(both)}
    return axes


class _Grouping:
    """The labels after a run, read as groups: channels whose positions lie along the same axes are alike."""

    def __init__(self, trace: LabelTrace, axes: list[tuple[Axis, Tensor]]) -> None:
        self.trace, self.axes = trace, axes
        for axis, labels in axes:
            if not any(id(getattr(module, key)) in trace.read for module, key, _ in axis.cuts):
                trace.fix(labels, "the model did not read them on this batch")
        self._sort()
        while bad := [labels for labels, count in trace.equal if self._divided(labels, count)]:
            for labels in bad:
                trace.fix(labels, "a layer in groups needs equally many in each, and they are no equal blocks")
            self._sort()

    def _sort(self) -> None:
        """Find the positions of each channel along each axis, and put channels with like positions together."""
        self.places: dict[int, dict[int, list[int]]] = {}
        for number, (_, labels) in enumerate(self.axes):
            for position, label in enumerate(self.trace.roots(labels).tolist()):
                if label:
                    self.places.setdefault(label, {}).setdefault(number, []).append(position)
        self.alike: dict[tuple, list[int]] = {}
        for label, held in self.places.items():
            self.alike.setdefault(tuple((number, len(at)) for number, at in held.items()), []).append(label)

    def _divided(self, labels: Tensor, count: int) -> bool:
        """Return whether channels that a grouped layer divides can not be removed in equal numbers."""
        roots = self.trace.roots(labels)
        return bool(roots.any()) and not any(self._blocks(roots, count, same) for same in self.alike.values())

    @staticmethod
    def _blocks(roots: Tensor, count: int, channels: list[int]) -> dict[int, int] | None:
        """Return label → block where the blocks hold just these channels, equally many each, each in one block."""
        block: dict[int, int] = {}
        rows = [set(row) for row in roots.reshape(count, -1).tolist()]
        for number, row in enumerate(rows):
            block |= dict.fromkeys(row, number)
        apart = sum(map(len, rows)) == len(block) and len(set(map(len, rows))) == 1
        return block if apart and block.keys() == set(channels) else None

    def groups(self) -> tuple[Group, ...]:
        """Return the groups, in the order of their first members."""
        return tuple(self._group(key, labels) for key, labels in sorted(self.alike.items()))

    def _group(self, key: tuple, labels: list[int]) -> Group:
        labels = sorted(labels, key=lambda label: self.places[label][key[0][0]][0])
        members = []
        for number, _ in key:
            axis = self.axes[number][0]
            places = tuple(tuple(self.places[label][number]) for label in labels)
            members.append(Member(axis.name, axis.axis, places))
        found = [self._blocks(self.trace.roots(v), count, labels) for v, count in self.trace.equal]
        blocks = dict.fromkeys(tuple(block[label] for label in labels) for block in found if block)
        averages = [name for name, v in self.trace.averages if labels[0] in self.trace.roots(v)]
        return Group(tuple(members), tuple(blocks), tuple(dict.fromkeys(averages)))

    def fixed(self) -> dict[str, str]:
        """Return "name.axis" → the reasons why channels along it cannot be removed."""
        reasons: dict[str, str] = {}
        for axis, labels in self.axes:
            stated = self.trace.reasons
            why = dict.fromkeys(stated[anchor] for anchor in self.trace.anchors(labels) if anchor in stated)
            if why:
                reasons[f"{axis.name}.{axis.axis}"] = "; ".join(why)
        return reasons
