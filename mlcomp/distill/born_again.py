r"""Born-again networks: each generation has the architecture of the first and learns from the one before it.

Notation: $q_i$ the teacher's probabilities for sample i, $q_{i*}$ the largest of them.
Source: Furlanello, Lipton, Tschannen, Itti, Anandkumar 2018, arXiv:1805.04770, section 3 (sequence of teaching
selves, ensemble; the two treatments CWTM and DKPP).   Syllabus: 4.17
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mlcomp.checks import check_choice, check_interval, check_values, check_whole
from mlcomp.context import isolated, isolated_run
from mlcomp.distill.soft_targets import distillation_loss
from mlcomp.distill.teaching import Seen, teach
from mlcomp.distill.train_student import Taught
from mlcomp.modes import home
from mlcomp.train.loop import train

TEACHING = ("soft", "permuted", "confidence")


@isolated_run
def born_again(
    make: Callable[[int], nn.Module],
    inputs: Tensor,
    labels: Tensor,
    *,
    generations: int,
    teaching: str = "soft",
    temperature: float = 1.0,
    alpha: float = 1.0,
    seed: int = 0,
    epochs: int,
    lr: float,
    **options: Any,
) -> tuple[Taught, ...]:
    """Train a network on labels, then others of its kind, each by the one before.

    Args:
        make: ``make(seed)`` returns a new, untrained network. Generation k gets ``seed`` + k, for its start and for
            its training.
        inputs, labels: (n, …) and (n,), as for :func:`mlcomp.train.train`.
        generations: how many come after the first, at least 1.
        teaching: "soft", the teacher's probabilities. Two treatments take knowledge out of them, to see what is left:
            "permuted" (DKPP) shuffles, sample by sample and anew in each step, the probabilities of all classes but
            the most likely one; "confidence" (CWTM) only weights the samples' cross-entropy with their labels, by
            the teacher's largest probability.
        temperature, alpha: of :func:`mlcomp.distill.distillation_loss`, for "soft" and "permuted".
        epochs, lr, options: of each generation, as for ``train``, but ``loss`` and ``checkpoint``.
    Returns:
        the generations, the first one, which learned from labels, at 0.
    Raises:
        ValueError: generations below 1, unknown teaching, temperature or alpha out of range, ``loss`` or
            ``checkpoint``, and what ``train`` refuses.
    Guarantee: generation k is that of any longer run with the same arguments.
    Cost: that of ``generations`` + 1 trainings.
    """
    check_whole("generations", generations, 1)
    check_choice("teaching", teaching, TEACHING)
    check_interval("temperature", temperature, "(0, inf]")
    check_interval("alpha is the share of the soft targets and", alpha, "[0, 1]")
    for name in ("loss", "checkpoint"):
        if name in options:
            raise ValueError(f"{name} cannot be given: there are several trainings, each with a loss of its own")
    first = make(seed)
    options |= {"epochs": epochs, "lr": lr}
    found = [Taught(first, train(first, inputs, labels, seed=seed, **options))]
    targets = labels.to(home(first))

    def loss(seen: Seen, taught: Seen, index: Tensor) -> Tensor:
        mine, theirs = targets[index], taught.logits
        if teaching == "confidence":
            return confidence_weighted_loss(seen.logits, theirs, mine)
        if teaching == "permuted":
            theirs = permute_others(theirs)
        return distillation_loss(seen.logits, theirs, mine, temperature=temperature, alpha=alpha)

    for number in range(1, generations + 1):
        student, teacher = make(seed + number), found[-1].model
        own = options | {"seed": seed + number}
        history, _ = teach(student, teacher, inputs, loss, **own)
        found.append(Taught(student, history))
    return tuple(found)


def confidence_weighted_loss(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    r"""Return $\sum_i w_i \mathrm{CE}_i$ with the labels, $w_i = q_{i*} / \sum_j q_{j*}$ over the batch (CWTM)."""
    weights = teacher.softmax(1).amax(1)
    return (weights * F.cross_entropy(student, labels, reduction="none")).sum() / weights.sum()


def permute_others(logits: Tensor) -> Tensor:
    """Return logits in which, row by row, all but the largest have changed places at random (DKPP).

    The order comes from the global generator, which a training loop seeds.
    """
    best = logits.argmax(1, keepdim=True)
    keys = torch.rand_like(logits).scatter(1, best, -1.0)  # the largest comes first in the random order
    order = keys.argsort(1)
    plain = torch.arange(logits.shape[1], device=logits.device).expand_as(logits)
    places = torch.cat([best, plain[plain != best].view(len(logits), -1)], 1)  # it stays, the others in their order
    return torch.empty_like(logits).scatter(1, places, logits.gather(1, order))


@isolated
def ensemble_log_probabilities(logits: Sequence[Float[Tensor, "*batch classes"]]) -> Float[Tensor, "*batch classes"]:
    """Return the logarithm of the mean of several networks' probabilities, for the same samples.

    Args:
        logits: one tensor for each network, all of one shape.
    Raises:
        ValueError: none, NaN or inf, other shapes.
    """
    if not len(logits):
        raise ValueError("logits holds nothing: give one tensor for each network")
    for number, z in enumerate(logits):
        check_values(f"logits[{number}]", z)
        if z.shape != logits[0].shape or z.ndim == 0 or z.shape[-1] == 0:
            shapes = f"{tuple(z.shape)} and {tuple(logits[0].shape)}"
            raise ValueError(f"logits must all be (…, classes) of one shape, got {shapes}")
    each = torch.stack([(z if z.dtype == torch.float64 else z.float()).log_softmax(-1) for z in logits])
    return each.logsumexp(0) - math.log(len(logits))
