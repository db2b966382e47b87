"""Modules of a network that can be removed: heads, and blocks of the hidden units of feed-forward layers.

A module is a block of the inputs of one layer: of an output projection the entries of a head, of the second layer of
a feed-forward network some hidden units. Masking it is multiplying these inputs by 0; removing it cuts them out, with
all that makes them.
Source: Dery et al. 2024, arXiv:2402.05406, section 3.   Syllabus: 4.12
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mlcomp.checks import check_whole
from mlcomp.context import isolated_run
from mlcomp.layerwise.running import check_batches
from mlcomp.modes import evaluating
from mlcomp.prune.structured.attention_heads import inputs_masked
from mlcomp.prune.structured.dependency_graph import Group, dependency_groups, find_group
from mlcomp.prune.structured.head_importance import Losses, all_losses
from mlcomp.prune.structured.remove_channels import group_weights, remove_channels


@dataclass(frozen=True)
class ModuleBlocks:
    """The modules of a model, numbered layer by layer.

    Attributes:
        blocks: name of a layer → number of equal blocks of its inputs.
        sizes: (N,) parameters of each module.
        layers: for each module the number of its layer.
        groups: name of a layer → the channels that its inputs are.
    """

    blocks: dict[str, int]
    sizes: Tensor
    layers: tuple[int, ...]
    groups: dict[str, Group]

    def masks(self, removed: Tensor) -> dict[str, Tensor]:
        """Return name → mask of the blocks, 0 where ``removed``, (N,), is True; for layers that lose some only."""
        parts = zip(self.blocks, (~removed).split(list(self.blocks.values())), strict=True)
        return {name: part.to(torch.float32) for name, part in parts if not bool(part.all())}

    def remove(self, model: nn.Module, removed: Tensor) -> nn.Module:
        """Return a copy of the model without the modules where ``removed`` is True.

        Raises:
            ValueError: all modules of a layer; otherwise as :func:`mlcomp.prune.remove_channels`.
        """
        gone = {}
        for name, mask in self.masks(removed).items():
            each = self.groups[name].channels // self.blocks[name]
            gone[self.groups[name]] = [c for c in range(self.groups[name].channels) if not mask[c // each]]
        return remove_channels(model, gone)


@isolated_run
def module_blocks(model: nn.Module, batch: Any, blocks: Mapping[str, int]) -> ModuleBlocks:
    """Return the modules of a model.

    Args:
        model: not modified.
        batch: a small one, on which the model runs once.
        blocks: name of a layer → into how many blocks its inputs are divided: the number of heads
            (:func:`mlcomp.prune.attention_heads`; of key–value heads where queries are grouped), or as many as you
            like of a feed-forward network's hidden units.
    Raises:
        ValueError: a layer whose inputs cannot be removed; a number of blocks that does not divide its channels.
    """
    groups = dependency_groups(model, batch)
    chosen, sizes = {}, []
    for name, count in blocks.items():
        group = find_group(groups, name, "in")
        check_whole(f"the number of blocks of {name!r}", count, 1)
        if group.channels % count:
            raise ValueError(f"{count} blocks do not divide the {group.channels} channels that {name!r} reads")
        entries = sum(rows.shape[1] for rows in group_weights(model, group).values())
        sizes += [entries * group.channels // count] * count
        chosen[name] = group
    layers = tuple(number for number, count in enumerate(blocks.values()) for _ in range(count))
    return ModuleBlocks(dict(blocks), torch.tensor(sizes, dtype=torch.float64, device="cpu"), layers, chosen)


@isolated_run
def module_utility(
    model: nn.Module, modules: ModuleBlocks, batches: Iterable, loss: Losses
) -> Callable[[Tensor], float]:
    """Return ``utility(removed)``: minus the mean loss of the model with these modules masked.

    Args:
        model: run in eval mode without gradients, so that no activation is kept for a backward pass; not modified.
        modules: of :func:`module_blocks`.
        batches: read at each evaluation.
        loss: ``loss(model, batch)`` returns (n,), the loss of each example of the batch.
    Raises:
        ValueError: batches that can be read only once.
    """
    check_batches(batches, again="the utility of each submodel")

    @isolated_run
    def utility(removed: Tensor) -> float:
        with evaluating(model), inputs_masked(model, modules.masks(removed)):
            return -float(all_losses(model, batches, loss).mean())

    return utility
