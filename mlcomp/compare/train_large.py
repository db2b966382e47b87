r"""Train large, then compress: pruned networks of several widths and dense small ones, all trained with equal FLOPs.

Notation: a network whose forward pass takes F FLOPs for one example costs F·s for s steps of training; every
contender may spend the same F·s, so a wider network gets fewer steps.
Source: Li et al. 2020, arXiv:2002.11794 (there: transformers, and hours instead of FLOPs).   Syllabus: 3.03
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mlcomp.checks import check_finite, check_interval, check_positive, check_whole
from mlcomp.context import isolated_run
from mlcomp.cost.model import model_cost
from mlcomp.layerwise.fit import copy_model
from mlcomp.layerwise.weights import keep_zeros, layer_weights, with_weights
from mlcomp.prune.importance.magnitude import global_magnitude
from mlcomp.train.loop import train


@dataclass(frozen=True)
class Contender:
    """A network that has spent its budget.

    Attributes:
        name: of the network it was made from.
        weights: weights of the layers that are left.
        steps: steps of the optimizer, before pruning and after.
        model: trained.
    """

    name: str
    weights: int
    steps: tuple[int, int]
    model: nn.Module

    @property
    def pruned(self) -> bool:
        """Whether weights were removed: then it trained again."""
        return self.steps[1] > 0


@isolated_run
def train_large(
    networks: Mapping[str, nn.Module],
    inputs: Tensor,
    labels: Tensor,
    *,
    budget: float | int,
    kept: Sequence[int],
    retraining: float = 0.25,
    batch_size: int = 64,
    seed: int = 0,
    retraining_seed: int | None = None,
    **options: Any,
) -> tuple[Contender, ...]:
    """Train each network dense, and pruned to each number of weights, for the same FLOPs.

    A pruned one trains dense for part of the budget, loses its smallest weights over all layers, and trains what is
    left for the rest; its FLOPs are those of the dense network throughout, since zeros in a dense matrix save none.

    Args:
        networks: name → untrained network; not modified.
        inputs, labels: as in :func:`mlcomp.train.train`, which does the training.
        budget: FLOPs of the forward passes of one example a step, summed over the steps (× 3 × ``batch_size`` for the
            whole training, if a backward pass costs two forward ones).
        kept: numbers of weights to prune to; a network with no more than that is not pruned to it.
        retraining: share of the budget that is spent after pruning.
        batch_size: the same for all.
        seed: of the order of the examples and of layers such as dropout.
        retraining_seed: the same after pruning; None: ``seed + 1``, so that the order is another one.
        options: ``lr`` and other options of ``train``, but for ``epochs``, ``after_step`` and ``checkpoint``.
    Returns:
        for each network that can make a step in each part of its budget: dense, then pruned to each number.
    Raises:
        ValueError: no network, a budget or a number of weights that is not positive, a share outside (0, 1), no
            network that can make a step, and all that ``train`` refuses.
    Guarantee: nobody spends more than the budget, or a step less than it allows; what pruning removes stays zero.
    Cost: a training with the whole budget for each network, and for each pruned one a share ``retraining`` of it.
    """
    _check(networks, inputs, budget, kept, retraining)
    check_whole("batch_size", batch_size, 1)
    for name in ("epochs", "after_step", "checkpoint"):
        if name in options:
            raise ValueError(f"{name} is not taken here: the budget says how long each network trains")
    second = seed + 1 if retraining_seed is None else retraining_seed
    data = (inputs, labels)
    options = {"batch_size": batch_size, "progress": False} | options
    found = []
    for name, start in networks.items():
        flops = model_cost(start, inputs[:1]).flops_dense
        if not flops:
            raise ValueError(f"network {name!r} has no linear or convolutional layer")
        whole = int(budget // flops)
        before, after = int((1 - retraining) * budget // flops), int(retraining * budget // flops)
        if not (before and after):
            continue
        total = sum(w.numel() for w in layer_weights(start).values())
        found.append(Contender(name, total, (whole, 0), _trained(start, *data, whole, seed, options)))
        if all(number >= total for number in kept):
            continue
        dense = _trained(start, *data, before, seed, options)
        for number in kept:
            if number < total:
                weights = global_magnitude(layer_weights(dense), sparsity=1 - number / total)
                pruned = _trained(with_weights(dense, weights), *data, after, second, options, hold=True)
                found.append(Contender(name, number, (before, after), pruned))
    if not found:
        raise ValueError(f"with a budget of {budget:g} FLOPs no network makes a step before pruning and one after it")
    return tuple(found)


def _check(
    networks: Mapping[str, nn.Module], inputs: Tensor, budget: float | int, kept: Sequence[int], share: float
) -> None:
    if not networks:
        raise ValueError("there is no network to train")
    check_finite("inputs", inputs)
    check_positive("budget", budget)
    check_interval("retraining", share, "(0, 1)")
    for number in kept:
        check_whole("kept", number, 1)


def _trained(
    start: nn.Module, inputs: Tensor, labels: Tensor, steps: int, seed: int, options: dict, *, hold: bool = False
) -> nn.Module:
    """Return a copy trained for ``steps`` steps on batches from passes in random order, its zeros held if asked."""
    net, options = copy_model(start), dict(options)
    count, generator = steps * options["batch_size"], torch.Generator().manual_seed(seed)
    passes = [torch.randperm(len(inputs), generator=generator, device="cpu") for _ in range(-(-count // len(inputs)))]
    drawn = torch.cat(passes)[:count]  # numbers of examples: the examples themselves are fetched batch by batch
    augment = options.pop("augment", None)

    def fetch(numbers: Tensor, generator: torch.Generator) -> Tensor:
        batch = inputs[numbers.to(inputs.device)]
        return batch if augment is None else augment(batch, generator)

    if hold:
        options["after_step"] = keep_zeros(net)
    train(net, drawn, labels[drawn.to(labels.device)], epochs=1, seed=seed, augment=fetch, **options)
    return net
