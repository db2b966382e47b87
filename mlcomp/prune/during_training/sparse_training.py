r"""Dynamic sparse training: the number of connections of each layer stays, and which there are changes on the way.

Notation: t step of the optimizer; a connection is a weight that is kept.
Source: Evci, Gale, Menick, Castro, Elsen 2020, arXiv:1911.11134, table 1 (drop and grow, the two choices in which the
methods differ).   Syllabus: 3.04
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mlcomp.layerwise.fit import copy_model
from mlcomp.prune.during_training.training_masks import TrainingMasks
from mlcomp.train.loop import History, train


@dataclass(frozen=True)
class SparseTraining:
    """What dynamic sparse training ends with.

    Attributes:
        model: the trained, sparse network, in the mode of the original.
        history: of the training.
        masks: name → True where there is a connection; one that the gradient never reached may still be zero.
        moved: step at which connections moved → their number in each layer.
    """

    model: nn.Module
    history: History
    masks: dict[str, Tensor]
    moved: dict[int, dict[str, int]]


def sparse_training(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    moving: Callable[[int], float],
    wanted: Callable[[str, Tensor, int], Tensor],
    replaces_step: bool,
    layers: Iterable[str] | None,
    **options: Any,
) -> SparseTraining:
    """Train a copy of ``model``, whose zeros are its missing connections, and move connections on the way.

    Args:
        moving: step → fraction of each layer's connections that move there.
        wanted: (layer, gradient of its weight, step) → scores; the largest among the missing connections come.
        replaces_step: connections move instead of the step; else after it.
        layers: as in :func:`mlcomp.prune.rigl`; options: of :func:`mlcomp.train.train`.
    """
    for name in ("before_step", "after_step"):
        if name in options:
            raise ValueError(f"{name} is taken: it keeps the masks")
    result = copy_model(model)
    kept = TrainingMasks(result, layers)
    for name, weight in kept.weights.items():
        kept.masks[name].copy_(weight != 0)
    sparse = [name for name, mask in kept.masks.items() if not bool(mask.all())]
    moved: dict[int, dict[str, int]] = {}
    found: list[Optimizer] = []

    def move(step: int) -> None:
        moved[step] = {}
        for name in sparse:
            count = round(moving(step) * int(kept.masks[name].sum()))
            kept.move(name, count, wanted(name, kept.gradient(name), step), found[0])
            moved[step][name] = count

    @torch.no_grad()
    def before_step(step: int, optimizer: Optimizer) -> bool:
        found[:] = [optimizer]
        if replaces_step and moving(step):
            move(step)
            return False
        kept.apply_to_gradients()
        return True

    @torch.no_grad()
    def after_step(step: int) -> None:
        kept.apply()  # whatever the optimizer does to a weight without a gradient
        if not replaces_step and moving(step):
            move(step)

    history = train(result, inputs, labels, before_step=before_step, after_step=after_step, **options)
    kept.remove()
    return SparseTraining(result, history, kept.masks, moved)
