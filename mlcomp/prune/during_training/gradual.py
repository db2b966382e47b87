r"""Gradual pruning: the sparsity rises along the cubic schedule while the network trains.

Notation: t step of the optimizer, $t_0$ and $t_1$ first and last step with an update of the masks, Δt steps between
updates; at each update the masks are those of a pruner at the sparsity $s_{t - t_0}$ of
:func:`mlcomp.prune.cubic_schedule` with $T = t_1 - t_0$.
Source: Zhu & Gupta 2017, arXiv:1710.01878, section 3.   Syllabus: 1.17, 1.19
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mlcomp.checks import check_sparsity, check_whole
from mlcomp.context import isolated_run
from mlcomp.layerwise.fit import copy_model
from mlcomp.prune.during_training.cubic_schedule import cubic_schedule
from mlcomp.prune.during_training.training_masks import TrainingMasks
from mlcomp.prune.importance.magnitude import global_magnitude
from mlcomp.train.loop import History, batch_starts, train


@dataclass(frozen=True)
class GradualPruning:
    """The trained, sparse network (in the mode of the original), its history, and the schedule that was followed.

    ``sparsity`` maps the optimizer steps after which the masks were updated to the sparsity from there on.
    """

    model: nn.Module
    history: History
    sparsity: dict[int, float]


@isolated_run
def gradual_pruning(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    sparsity: float,
    epochs: int,
    batch_size: int = 64,
    begin: float = 0.0,
    end: float = 0.75,
    every: int = 20,
    pruner: Callable[..., Mapping[str, Tensor]] = global_magnitude,
    layers: Iterable[str] | None = None,
    **options: Any,
) -> GradualPruning:
    r"""Train a copy of ``model`` and prune it on the way.

    Args:
        model: trained or not; not modified.
        inputs, labels, epochs, batch_size: as in :func:`mlcomp.train.train`, which does the training.
        sparsity: final share of zeros over the chosen layers.
        begin, end: shares of all steps at which pruning begins and has reached ``sparsity``, 0 ≤ begin < end ≤ 1.
            What is left after ``end`` lets the network recover.
        every: Δt. The last update is at ``end``, also where Δt does not divide the steps.
        pruner: ``pruner(weights, sparsity=s)`` returns the pruned weights by name: :func:`global_magnitude` (one
            threshold for the whole network), :func:`layer_normalized`, or your own.
        layers: names of the layers to prune; None: all linear and convolutional ones.
        options: ``lr`` and all other options of ``train``, ``checkpoint`` among them.
    Returns:
        see :class:`GradualPruning`.
    Raises:
        ValueError: a sparsity or share outside its range, every below 1, no layers, and all that ``train`` refuses.
    Guarantee: with a pruner that meets its target, exactly ``sparsity`` at the end. A weight that is pruned stays
        pruned, and is zero in every forward pass from there on. The same arguments give the same network,
        interrupted and resumed or not.
    Deviations: pruned weights are set to zero after each step instead of in the forward pass, which is the same; in
        the paper a masked weight keeps its value, out of use, and could return, here it cannot.
    """
    check_sparsity(sparsity)
    if not 0 <= begin < end <= 1:
        raise ValueError(f"begin and end are shares of the training with 0 ≤ begin < end ≤ 1, got {begin}, {end}")
    check_whole("every", every, 1)
    steps = epochs * len(batch_starts(len(inputs), batch_size))
    plan = _plan(sparsity, max(1, round(begin * steps)), max(1, round(end * steps)), every)
    result = copy_model(model)
    kept = TrainingMasks(result, layers)

    def after_step(step: int) -> None:
        with torch.no_grad():
            kept.apply()  # before the ranking, too: what was pruned is zero and goes first
            if step in plan:
                for name, pruned in pruner(kept.weights, sparsity=plan[step]).items():
                    kept.masks[name].logical_and_(pruned != 0)
                kept.apply()

    history = train(result, inputs, labels, epochs=epochs, batch_size=batch_size, after_step=after_step, **options)
    kept.remove()
    return GradualPruning(result, history, plan)


def _plan(sparsity: float, first: int, last: int, every: int) -> dict[int, float]:
    """Return step → sparsity for each update of the masks."""
    if last <= first:
        return {last: sparsity}
    moments = [*range(first, last, every), last]
    return {step: cubic_schedule(step - first, steps=last - first, final=sparsity) for step in moments}
