r"""Training the pruned architecture from scratch, for as long or for as much computation as the big network had.

Notation: F the FLOPs of a forward pass of one sample; training takes 3F for each sample, since a backward pass costs
two forward ones. Scratch-E has the epochs E of the big network, Scratch-B its computation:
$\lfloor E\,F_{\text{big}}/F_{\text{small}} \rfloor$ epochs.
Source: Liu, Sun, Zhou, Huang, Darrell 2019, arXiv:1810.05270, section 3 (training budget); Li et al. 2017,
arXiv:1608.08710, section 3 (L1 norm of filters).   Syllabus: 5.02
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mlcomp.checks import check_choice, check_interval, check_whole
from mlcomp.context import isolated, isolated_run
from mlcomp.cost.model import model_cost
from mlcomp.layerwise.fit import copy_model
from mlcomp.prune.structured.dependency_graph import Group
from mlcomp.prune.structured.remove_channels import group_weights, remove_channels
from mlcomp.train.loop import History, train


@dataclass(frozen=True)
class TrainingBill:
    """What making a network cost, counted in three ways.

    Attributes:
        epochs: of its own training.
        flops: of its own training.
        flops_with_big: and of the training of the network that it was cut from, where one was trained.
    """

    epochs: int
    flops: int
    flops_with_big: int


@dataclass(frozen=True)
class FromScratch:
    """The trained small network, its history, and what it cost."""

    model: nn.Module
    history: History
    bill: TrainingBill


@isolated_run
def from_scratch(
    big: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    removed: Mapping[Group, Iterable[int]],
    *,
    epochs: int,
    budget: str = "epochs",
    cap: float | int | None = None,
    seed: int = 0,
    **options: Any,
) -> FromScratch:
    """Train what is left of ``big`` without these channels, from new random weights.

    Args:
        big: the network whose architecture is pruned; its weights are not used. Not modified.
        inputs, labels, seed: as for :func:`mlcomp.train.train`; the seed is also that of the new weights.
        removed: as for :func:`mlcomp.prune.remove_channels`; only how many channels of a group go matters.
        epochs: for which the big network is, or would be, trained.
        budget: "epochs" (Scratch-E) or "compute" (Scratch-B, see :func:`scratch_epochs`).
        cap: of "compute", see there.
        options: all others of ``train``, ``lr`` among them.
    Returns:
        see :class:`FromScratch`; no big network is in the bill.
    Raises:
        ValueError: as :func:`mlcomp.prune.remove_channels`, :func:`reinitialize` and ``train``; an unknown budget.
    Guarantee: bit for bit what a small network becomes that is built and trained with this seed.
    """
    check_choice("budget", budget, ("epochs", "compute"))
    check_whole("epochs", epochs, 1)
    small = reinitialize(remove_channels(big, removed), seed=seed)
    if budget == "compute":
        epochs = scratch_epochs(big, small, inputs[:1], epochs=epochs, cap=cap)
    history = train(small, inputs, labels, epochs=epochs, seed=seed, **options)
    return FromScratch(small, history, training_bill(small, inputs[:1], samples=len(inputs), epochs=epochs))


@isolated_run
def reinitialize(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """Return a copy of ``model`` with new random weights, as its modules draw them when they are made.

    Args:
        model: not modified.
        seed: of the weights; the global random state is left alone.
    Raises:
        ValueError: a module with parameters of its own that has no ``reset_parameters``.
    Guarantee: for modules of torch made one after the other, the weights of a model that is built after
        ``torch.manual_seed(seed)``; running statistics begin anew, too.
    """
    result = copy_model(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, module in result.named_modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            elif any(p is not None for p in module._parameters.values()):
                raise ValueError(
                    f"{name or 'the model'!r} ({type(module).__name__}) has parameters and no reset_parameters, so "
                    "how it begins is not known: build a new model instead"
                )
    return result


@isolated_run
def scratch_epochs(
    big: nn.Module, small: nn.Module, sample: Tensor, *, epochs: int, cap: float | int | None = None
) -> int:
    """Return for how many epochs ``small`` can train with the computation that ``epochs`` take of ``big``.

    Args:
        big, small: run once on the sample; not modified.
        sample: as for :func:`mlcomp.cost.model_cost`.
        epochs: of ``big``.
        cap: at most so many times ``epochs``, at least 1: the paper takes 2 on ImageNet. None: no limit.
    Raises:
        ValueError: epochs or cap below 1, or a network without a linear or convolutional layer.
    Guarantee: one epoch more would take more FLOPs than ``big`` had, or exceed the cap.
    """
    check_whole("epochs", epochs, 1)
    if cap is not None:
        check_interval("cap", cap, "[1, inf)")
    flops = [model_cost(model, sample).flops_dense for model in (big, small)]
    if not all(flops):
        raise ValueError("a network without linear and convolutional layers has no FLOPs to compare")
    count = epochs * flops[0] // flops[1]
    return count if cap is None else min(count, int(cap * epochs))


@isolated_run
def training_bill(
    model: nn.Module,
    sample: Tensor,
    *,
    samples: int,
    epochs: int,
    big: nn.Module | None = None,
    big_epochs: int = 0,
) -> TrainingBill:
    """Return what training ``model`` cost, alone and with the big network that it was cut from.

    Args:
        model, big: run once on the sample; not modified.
        sample: one sample, with the dimension of the batch.
        samples: in an epoch.
        epochs, big_epochs: of their trainings; 0 for none.
        big: None where no big network was trained.
    Raises:
        ValueError: a number that is negative or not whole.
    """
    check_whole("samples", samples, 1)
    check_whole("epochs", epochs, 0)
    check_whole("big_epochs", big_epochs, 0)
    own = 3 * model_cost(model, sample).flops_dense * samples * epochs
    before = 0 if big is None else 3 * model_cost(big, sample).flops_dense * samples * big_epochs
    return TrainingBill(epochs, own, own + before)


@isolated
def filter_norms(model: nn.Module, groups: Iterable[Group]) -> dict[Group, Tensor]:
    """Return the L1 norm of the filters of each channel: the sum of |w| over the rows that make it.

    Args:
        model: not modified.
        groups: of :func:`mlcomp.prune.dependency_groups`.
    Returns:
        group → (channels,), float64, for :func:`mlcomp.prune.least_channels`. Rows of all layers whose outputs are
        this channel count (two that are added, say); biases, norms and the columns that read it do not.
    """
    found = {}
    for group in groups:
        total = torch.zeros(group.channels, dtype=torch.float64)
        makers = {member.name for member in group.members if member.axis == "out"}
        for (name, dim), rows in group_weights(model, group).items():
            if dim == 0 and name.rpartition(".")[0] in makers and model.get_parameter(name).ndim > 1:
                total = total + rows.double().abs().sum(1).cpu()
        found[group] = total
    return found
