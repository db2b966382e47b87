r"""Network slimming: an L1 penalty on BatchNorm's γ shows which channels can go, and they really go.

Notation: γ, β of a BatchNorm; the loss is $L + \lambda\sum|\gamma|$ over all of them. A subgradient step adds
$\lambda\,\mathrm{sign}(\gamma)$ to the gradient; a proximal step takes the step of L and then moves γ towards 0 by
$\eta\lambda$, η the learning rate of the step, and not past it.
Source: Liu et al. 2017, arXiv:1708.06519, section 3, eq. (1).   Syllabus: 3.08
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from mlcomp.checks import check_choice, check_interval, check_positive, removals
from mlcomp.context import isolated, isolated_run
from mlcomp.layerwise.fit import copy_model
from mlcomp.prune.structured.dependency_graph import Group, dependency_groups
from mlcomp.prune.structured.remove_channels import remove_channels
from mlcomp.train.loop import History, train

Removed = dict[Group, tuple[int, ...]]


@dataclass(frozen=True)
class Slimmed:
    """The small network, the whole one that the penalty trained, its history, and the channels that were removed."""

    model: nn.Module
    whole: nn.Module
    history: History
    removed: Removed


@isolated_run
def network_slimming(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    share: float,
    strength: float,
    epochs: int,
    finetune_epochs: int,
    lr: float = 0.1,
    momentum: float = 0.9,
    step: str = "subgradient",
    fold: bool = False,
    **options: Any,
) -> Slimmed:
    """Train with the penalty, cut the channels with the least γ out, and train what is left.

    Args:
        model: trained or not; not modified.
        inputs, labels: as for :func:`mlcomp.train.train`.
        share: of the channels that can be removed behind a BatchNorm, over all layers together.
        strength, epochs, lr, momentum, step: see :func:`train_gammas`.
        finetune_epochs: passes over the data without the penalty after the cut, by the same optimizer; 0 for none.
        fold: put the constants that removed channels give, relu(β) where γ is 0, into the layers after them; see
            :func:`mlcomp.prune.remove_channels`.
        options: all others of ``train`` but ``checkpoint``.
    Returns:
        see :class:`Slimmed`; ``model`` is cut once, after the penalty.
    Raises:
        ValueError: as :func:`train_gammas`, :func:`slimming_channels` and ``train``; a ``checkpoint``, since there
            are two trainings: run the steps one by one instead.
    """
    check_interval("share is that of the channels and", share, "[0, 1]")
    if "checkpoint" in options:
        raise ValueError("checkpoint is of one training, and here are two: call train_gammas and train with one each")
    both = {"lr": lr, **options}
    first: dict[str, Any] = {"strength": strength, "epochs": epochs, "momentum": momentum, "step": step}
    whole, history = train_gammas(model, inputs, labels, **first, **both)
    removed = slimming_channels(whole, dependency_groups(whole, inputs[:1]), share=share)
    batches = inputs.split(options.get("batch_size", 64)) if fold else None
    small = remove_channels(whole, removed, fold=batches)
    if finetune_epochs:
        train(small, inputs, labels, epochs=finetune_epochs, optimizer=sgd(momentum), **both)
    return Slimmed(small, whole, history, removed)


@isolated_run
def train_gammas(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    strength: float,
    epochs: int,
    lr: float = 0.1,
    momentum: float = 0.9,
    step: str = "subgradient",
    **options: Any,
) -> tuple[nn.Module, History]:
    r"""Return a copy of ``model`` trained by SGD on $L + \lambda\sum|\gamma|$, and its history (of L alone).

    Args:
        model: not modified.
        inputs, labels, epochs, lr, momentum: as for :func:`mlcomp.train.train`.
        strength: λ. All in all a γ without other gradient moves by λ·Σ(learning rates)/(1 − momentum), without the
            last factor in the proximal form: a λ for which this is a few times the γ of the start works.
        step: "subgradient", as in the paper, after which γ swings around 0 by about the last learning rate times λ;
            or "proximal", after which it is exactly 0. There momentum is of the loss alone, so λ has to be larger.
        options: all others of ``train``. An optimizer that rescales gradients, such as AdamW, would rescale the
            penalty away: here it is always SGD.
    Raises:
        ValueError: λ not positive, another ``step``, no BatchNorm with a γ that is trained, and all that ``train``
            refuses.
    """
    check_positive("strength", strength)
    check_choice("step", step, ("subgradient", "proximal"))
    result = copy_model(model)
    gammas = [gamma for gamma in _gammas(result).values() if gamma.requires_grad]
    if not gammas:
        raise ValueError("the model has no BatchNorm whose weight γ is trained, so there is nothing to slim by")
    own = options.pop("before_step", None), options.pop("after_step", None)
    rate = 0.0  # of the step under way

    def penalize(number: int, optimizer: Optimizer) -> bool | None:
        nonlocal rate
        rate = optimizer.param_groups[0]["lr"]
        for gamma in gammas if step == "subgradient" else ():
            assert gamma.grad is not None  # a BatchNorm that was not called has none, and no place in a network
            gamma.grad.add_(gamma.detach().sign(), alpha=strength)
        return None if own[0] is None else own[0](number, optimizer)

    @torch.no_grad()
    def shrink(number: int) -> None:
        for gamma in gammas if step == "proximal" else ():
            gamma.copy_(nn.functional.softshrink(gamma, strength * rate))
        if own[1] is not None:
            own[1](number)

    history = train(
        result,
        inputs,
        labels,
        epochs=epochs,
        lr=lr,
        optimizer=sgd(momentum),
        before_step=penalize,
        after_step=shrink,
        **options,
    )
    return result, history


def sgd(momentum: float) -> Callable[..., Optimizer]:
    """Return SGD with this momentum, in [0, 1), as ``train`` takes an optimizer."""
    check_interval("momentum", momentum, "[0, 1)")
    return partial(torch.optim.SGD, momentum=momentum)


@isolated
def slimming_channels(
    model: nn.Module, groups: Iterable[Group], *, share: float | None = None, threshold: float | None = None
) -> Removed:
    """Return the channels of least |γ| over all groups together, by one threshold for the whole network.

    Args:
        model: not modified.
        groups: of :func:`mlcomp.prune.dependency_groups`; those without a BatchNorm are left alone. A channel with
            several (in a residual stream) counts as its largest |γ|: it is gone when all of them are.
        share: of all their channels, rounded half up. Exclusive with ``threshold``.
        threshold: remove all channels with |γ| up to here; zeros are often many.
    Returns:
        group → channels in ascending order, for the groups that lose any.
    Raises:
        ValueError: not exactly one of share and threshold, or out of range; no group with a BatchNorm.
    Guarantee: every group keeps at least one channel, and where a grouped convolution needs it as many in each block:
        there the least of each block go together, at the score of the largest. So fewer than ``share`` may go, never
        more. No removed channel has a larger score than one that could have gone in its place; ties by place.
    Deviation: the authors' code removes all that is not above the threshold, one channel too many, and can empty a
        layer.
    """
    if (share is None) == (threshold is None):
        raise ValueError(f"give exactly one of share and threshold, got {share=} and {threshold=}")
    if share is not None:
        check_interval("share is that of the channels and", share, "[0, 1]")
    else:
        check_interval("threshold", threshold or 0, "[0, inf)")
    gammas = {name: gamma.detach().abs() for name, gamma in _gammas(model).items()}
    scored = {group: _scores(group, gammas) for group in groups}
    scored = {group: scores for group, scores in scored.items() if scores}
    if not scored:
        raise ValueError("no group holds a BatchNorm with a weight γ")
    limit = sum(map(len, scored.values()))
    limit = limit if share is None else removals(share, limit)
    found: dict[Group, list[int]] = {}
    taken = 0
    units = [(score, group, part) for group, scores in scored.items() for score, part in _parts(group, scores)]
    for score, group, part in sorted(units, key=lambda unit: unit[0]):
        if taken + len(part) <= limit and (threshold is None or score <= threshold):
            found.setdefault(group, []).extend(part)
            taken += len(part)
    return {group: tuple(sorted(numbers)) for group, numbers in found.items()}


def _gammas(model: nn.Module) -> dict[str, Tensor]:
    found = {n: m.weight for n, m in model.named_modules() if isinstance(m, _BatchNorm)}
    return {name: gamma for name, gamma in found.items() if gamma is not None}


def _scores(group: Group, gammas: dict[str, Tensor]) -> list[float]:
    """Return the largest |γ| of each channel; nothing where none of the members is a BatchNorm."""
    norms = [member for member in group.members if member.axis == "out" and member.name in gammas]
    rows = [gammas[member.name].cpu()[torch.tensor(member.indices)].amax(1) for member in norms]
    return torch.stack(rows).amax(0).tolist() if rows else []


def _parts(group: Group, scores: list[float]) -> list[tuple[float, tuple[int, ...]]]:
    """Return what can go at a time, with its score, least first: a channel, or one of each block; never the last."""
    if len(group.blocks) > 1:  # two ways to be equal at once: left alone
        return []
    blocks = group.blocks[0] if group.blocks else (0,) * len(scores)
    ranked: dict[int, list[int]] = {}
    for number in sorted(range(len(scores)), key=scores.__getitem__):
        ranked.setdefault(blocks[number], []).append(number)
    parts = list(zip(*ranked.values(), strict=True))[:-1]
    return [(max(scores[n] for n in part), part) for part in parts]
