"""LLM-Pruner: of a language model's coupled channels and heads those go that the loss would miss least.

Notation: a group's channels are what can be removed one by one (a neuron of an MLP with its rows in gate and up and
its column in down; a key-value head with its query heads and their columns in the output projection); the share is of
these, in each group, as the paper has it: the same in every layer that is pruned.
Source: Ma, Fang, Wang 2023, arXiv:2305.11627, sections 3.1–3.2 (discovery and estimation; recovery is
:func:`mlcomp.train.add_lora` and a training).   Syllabus: 5.03
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mlcomp.checks import check_interval, removals
from mlcomp.context import isolated, isolated_run
from mlcomp.layerwise.running import check_batches
from mlcomp.prune.structured.dependency_graph import Group, dependency_groups
from mlcomp.prune.structured.group_importance import group_importance
from mlcomp.prune.structured.remove_channels import remove_channels

Removed = dict[Group, tuple[int, ...]]


@dataclass(frozen=True)
class PrunedModel:
    """The smaller model, the scores by which channels were chosen, and those that were removed."""

    model: nn.Module
    scores: dict[Group, Tensor]
    removed: Removed


@isolated_run
def llm_pruner(
    model: nn.Module, examples: Iterable, *, share: float, groups: Iterable[Group] | None = None, **options: Any
) -> PrunedModel:
    """Return the model without the least important channels of each group; what is left needs recovery.

    Args:
        model: not modified.
        examples: batches for the model; the paper takes ten sequences of text. The first one also shows which
            channels are coupled.
        share: of the channels of each group, rounded half up.
        groups: those of :func:`mlcomp.prune.dependency_groups` that lose channels; the paper leaves the first and
            last layers alone. None: all but those over which a norm averages (the residual stream).
        options: of :func:`mlcomp.prune.group_importance`: expansion, order, aggregation, loss.
    Returns:
        see :class:`PrunedModel`.
    Raises:
        ValueError: as :func:`mlcomp.prune.group_importance` and :func:`least_channels`; no group to prune.
    Guarantee: the outputs, and what is generated with a cache, are those of ``model`` with all weights of the removed
        channels at zero, up to rounding.
    Cost: that of the importance, and a copy of the model.
    """
    check_interval("share is that of the channels and", share, "[0, 1)")
    check_batches(examples)
    batches = list(examples)
    if not batches:
        raise ValueError("examples is empty: importance needs a gradient")
    if groups is None:
        groups = [group for group in dependency_groups(model, batches[0]) if not group.averaged]
    scores = group_importance(model, batches, groups, **options)
    removed = least_channels(scores, share=share)
    return PrunedModel(remove_channels(model, removed), scores, removed)


@isolated
def least_channels(scores: Mapping[Group, Tensor], *, share: float) -> Removed:
    """Return the channels with the least scores, the same share of each group.

    Args:
        scores: group → (channels,), such as of :func:`mlcomp.prune.group_importance`; −inf is a score.
        share: in [0, 1), rounded half up to whole channels; one channel always stays.
    Returns:
        group → channels in ascending order, for the groups that lose any. Of equal scores the first goes.
    Raises:
        ValueError: a share outside its range; NaN, or not one score for each channel.
    Guarantee: no removed channel has a larger score than one of its group that stays. Where a grouped convolution
        needs as many in each block, this holds within a block, and each loses equally many, rounded down.
    """
    check_interval("share is that of the channels and", share, "[0, 1)")
    found: Removed = {}
    for group, values in scores.items():
        first = f"{group.members[0].name!r} ({group.channels} channels)"
        if tuple(values.shape) != (group.channels,):
            raise ValueError(f"the scores of {first} must have one entry a channel, got {tuple(values.shape)}")
        if bool(torch.isnan(values).any()):
            raise ValueError(f"the scores of {first} hold NaN")
        count = min(removals(share, group.channels), group.channels - 1)
        numbers = _least(values.tolist(), count, group.blocks)
        if numbers:
            found[group] = tuple(sorted(numbers))
    return found


def _least(values: list[float], count: int, blocks: tuple[tuple[int, ...], ...]) -> list[int]:
    """Return ``count`` channels with the least values; of blocks equally many from each."""
    ranked = sorted(range(len(values)), key=values.__getitem__)
    if not blocks:
        return ranked[:count]
    if len(blocks) > 1:  # they would have to be equal in two ways at once: left alone
        return []
    parts = {b: [n for n in ranked if blocks[0][n] == b] for b in blocks[0]}
    each = count // len(parts)
    return [n for part in parts.values() for n in part[:each]]
