r"""The lottery ticket hypothesis: train, prune, go back to the start with what is left, and again.

Notation: a ticket is a mask together with the weights of the start that it keeps.
Source: Frankle & Carbin 2019, arXiv:1803.03635, section 1 and strategy 2 (iterative, with resetting); Frankle et al.
2020, arXiv:1912.05671 (back to an early step instead of the first).   Syllabus: 3.02
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mlcomp.checks import check_interval, check_whole, removals
from mlcomp.context import isolated, isolated_run
from mlcomp.layerwise.fit import copy_model
from mlcomp.layerwise.weights import keep_zeros, layer_weights, network_sparsity, with_weights
from mlcomp.prune.pattern import smallest_mask
from mlcomp.train.loop import History, train


@dataclass(frozen=True)
class Ticket:
    """One round: the sparse network at the start, and trained.

    Attributes:
        start: the network whose zeros are the mask; its other weights are those of the start.
        trained: the same after training, with the same zeros.
        sparsity: share of zeros in the layers.
        history: of the training.
    """

    start: nn.Module
    trained: nn.Module
    sparsity: float
    history: History


@isolated_run
def lottery_tickets(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    rounds: int,
    rate: float = 0.2,
    output_rate: float | None = None,
    rewind: int = 0,
    layers: Iterable[str] | None = None,
    **options: Any,
) -> tuple[Ticket, ...]:
    """Find smaller and smaller networks that train from the weights of the start; the first is dense.

    Each round trains the network, removes the smallest trained weights of each layer, and sets what is left back.

    Args:
        model: untrained; not modified.
        inputs, labels: as in :func:`mlcomp.train.train`, which does the training.
        rounds: how often to prune. One round at a high rate is one-shot pruning.
        rate: fraction of each layer's remaining weights that a round removes.
        output_rate: the same for the last of the layers; None: half of ``rate``, as in the paper.
        rewind: step of the optimizer in the first training whose weights are the start (0: untrained, as in the
            first paper). All parameters and buffers go back to it.
        layers: names of the layers to prune; None: all linear and convolutional ones.
        options: ``epochs``, ``lr`` and all other options of ``train``, but for ``after_step`` and ``checkpoint``.
    Returns:
        ``rounds + 1`` tickets.
    Raises:
        ValueError: rounds below 1, a rate outside (0, 1), rewind beyond the training, no layers, and all that
            ``train`` refuses.
    Guarantee: each mask keeps part of what the one before it kept; in each layer a round removes the asked fraction,
        rounded half up, of those that are left. What a mask removes is zero in every forward pass.
    Cost: rounds + 1 trainings.
    """
    check_whole("rounds", rounds, 1)
    check_whole("rewind", rewind, 0)
    last_rate = rate / 2 if output_rate is None else output_rate
    check_interval("rate", rate, "(0, 1)")
    check_interval("output_rate", last_rate, "(0, 1)")
    for name in ("after_step", "checkpoint"):
        if name in options:
            raise ValueError(f"{name} is not taken here: each round is a training of its own")
    start = copy_model(model)
    names = list(layer_weights(start, layers))
    rates = dict.fromkeys(names, rate) | {names[-1]: last_rate}
    tickets: list[Ticket] = []
    for number in range(rounds + 1):
        trained = copy_model(start)
        early: dict[str, Tensor] = {}
        hold = keep_zeros(trained, names)
        after = _holding(hold, trained, early, rewind) if number == 0 and rewind else hold
        history = train(trained, inputs, labels, after_step=after, **options)
        if number == 0 and rewind:
            if not early:
                raise ValueError(f"rewind={rewind} is beyond the last step of the training")
            start.load_state_dict(early)
        tickets.append(Ticket(start, trained, network_sparsity(start, names), history))
        if number < rounds:
            start = with_weights(start, _smaller(start, trained, rates))
    return tuple(tickets)


def _holding(
    hold: Callable[[int], None], model: nn.Module, early: dict[str, Tensor], rewind: int
) -> Callable[[int], None]:
    """Return a callback that keeps zeros, and notes the state of the model after step ``rewind``."""

    def after_step(step: int) -> None:
        hold(step)
        if step == rewind:
            early.update({key: value.clone() for key, value in model.state_dict().items()})

    return after_step


def _smaller(start: nn.Module, trained: nn.Module, rates: Mapping[str, float]) -> dict[str, Tensor]:
    """Return the start's weights without those that are smallest after training, of those that are left."""
    before, after = layer_weights(start, rates), layer_weights(trained, rates)
    pruned = {}
    for name, rate in rates.items():
        gone = before[name] == 0
        count = int(gone.sum()) + removals(rate, int((~gone).sum()))
        size = after[name].abs().masked_fill(gone, -1)  # what is gone goes first
        removed = smallest_mask(size.reshape(1, -1), count).reshape(gone.shape)
        pruned[name] = before[name].masked_fill(removed, 0)
    return pruned


@isolated
def shuffled_zeros(weights: Mapping[str, Tensor], like: Mapping[str, Tensor], *, seed: int = 0) -> dict[str, Tensor]:
    """Return ``weights`` with as many zeros in each layer as in ``like``, at random places: a control for a mask.

    Args:
        weights: name → weight of the start, dense; not modified. like: name → weight with zeros, of the same shapes.
        seed: of the places; the global random state is left alone.
    Raises:
        ValueError: names or shapes that differ.
    Guarantee: within a layer each mask with that number of zeros is equally likely.
    """
    if {n: w.shape for n, w in weights.items()} != {n: w.shape for n, w in like.items()}:
        raise ValueError("weights and like must hold the same names and shapes")
    generator = torch.Generator().manual_seed(seed)
    result = {}
    for name, weight in weights.items():
        ranks = torch.rand(1, weight.numel(), generator=generator)
        removed = smallest_mask(ranks, int((like[name] == 0).sum())).reshape(weight.shape)
        result[name] = weight.masked_fill(removed.to(weight.device), 0)
    return result
