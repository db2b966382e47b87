r"""Where a compressed model errs: accuracy by subgroup, how much of the worst is chance, changed predictions.

Notation: n samples, each in one of G groups, numbered from 0.
Sources: Hooker et al. 2019, arXiv:1911.05248 (few examples bear what is lost); Hooker et al. 2020, arXiv:2010.03058
(they are not spread evenly over groups). Slant of a digit: the shear that makes its second moments upright.
Syllabus: 5.11
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mlcomp.checks import check_codes, check_like, check_tensor, check_values, check_whole
from mlcomp.context import isolated


@dataclass(frozen=True)
class SubgroupAccuracy:
    """How many samples each group has, and which share of them is right; 0 of both for a group without samples."""

    counts: Int64[Tensor, " groups"]
    accuracy: Float[Tensor, " groups"]

    @property
    def worst(self) -> float:
        """The smallest accuracy of a group that has samples."""
        return float(self.accuracy[self.counts > 0].min())

    @property
    def gap(self) -> float:
        """Largest minus smallest accuracy."""
        return float(self.accuracy[self.counts > 0].max()) - self.worst


@dataclass(frozen=True)
class Changes:
    """Shares of samples whose prediction changed, was right and is wrong now, was wrong and is right now."""

    changed: float
    lost: float
    gained: float


@isolated
def subgroup_accuracy(correct: Bool[Tensor, " n"], groups: Int64[Tensor, " n"]) -> SubgroupAccuracy:
    """Return the accuracy within each group.

    Args:
        correct: whether each prediction is right.
        groups: the group of each sample, from 0; a number below the largest that no sample has is an empty group.
    Raises:
        ValueError: no sample, not one group for each sample, a negative number.
    Guarantee: accuracies weighted by counts are the accuracy of all.
    """
    groups = _groups(correct, groups)
    counts = torch.bincount(groups)
    return SubgroupAccuracy(counts, torch.bincount(groups, correct.double()) / counts.clamp(min=1))


@isolated
def worst_by_chance(
    correct: Bool[Tensor, " n"], groups: Int64[Tensor, " n"], *, draws: int = 200, seed: int = 0
) -> Float[Tensor, " draws"]:
    """Return the worst group's accuracy when the same errors fall on samples at random, for a number of draws.

    The smallest of several accuracies lies below their mean even if the groups are alike. Only a worst group below
    (nearly) all of these says that the errors prefer one.

    Args:
        correct: whether each prediction is right.
        groups: the group of each sample, from 0. Their sizes stay.
        draws: permutations of the samples.
        seed: of the draws.
    Raises:
        ValueError: as :func:`subgroup_accuracy`; draws below 1.
    """
    groups = _groups(correct, groups)
    check_whole("draws", draws, 1)
    check_whole("seed", seed, 0)
    generator = torch.Generator().manual_seed(seed)
    orders = (torch.randperm(len(correct), generator=generator).to(correct.device) for _ in range(draws))
    worst = [subgroup_accuracy(correct[order], groups).worst for order in orders]
    return torch.tensor(worst, dtype=torch.float64)


@isolated
def changed_predictions(
    reference: Float[Tensor, "n classes"], logits: Float[Tensor, "n classes"], labels: Int64[Tensor, " n"]
) -> Changes:
    """Compare the likeliest classes of two models of the same samples.

    Args:
        reference: logits of the original model.
        logits: logits of the compressed one.
        labels: classes, from 0.
    Raises:
        ValueError: NaN or inf, other shapes, a label outside the classes, no sample.
    Guarantee: the accuracies differ by gained − lost, which says little about ``changed`` ≥ gained + lost.
    """
    check_values("reference", reference)
    if reference.ndim != 2 or not reference.numel():
        raise ValueError(f"reference must be (n, classes) with at least one sample, got {tuple(reference.shape)}")
    check_like("logits", logits, reference.shape, "the reference")
    check_tensor("labels", labels)
    if labels.shape != reference.shape[:1]:
        raise ValueError(f"labels must be ({len(reference)},), got {tuple(labels.shape)}")
    check_codes("labels", labels, reference.shape[1] - 1)
    before, after = reference.argmax(1), logits.argmax(1)
    was, now = before == labels, after == labels
    return Changes(_share(before != after), _share(was & ~now), _share(~was & now))


@isolated
def ranked_groups(values: Float[Tensor, " n"], *, parts: int = 3) -> Int64[Tensor, " n"]:
    """Return the group of each sample when they are sorted by ``values`` and cut into equal parts, 0 the smallest.

    Args:
        values: one number for each sample. Equal ones stay in their order, so a cut may go through them.
        parts: groups, at most n. Their sizes differ by at most 1.
    Raises:
        ValueError: no vector, NaN or inf, more parts than samples.
    """
    check_values("values", values)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"values must be (n,) with at least one entry, got {tuple(values.shape)}")
    check_whole("parts", parts, 1, len(values))
    groups = torch.empty_like(values, dtype=torch.int64)
    groups[values.argsort(stable=True)] = torch.arange(len(values), device=values.device) * parts // len(values)
    return groups


@isolated
def ink(images: Float[Tensor, "n 1 height width"]) -> Float[Tensor, " n"]:
    """Return the mean brightness of each image (of a bright stroke on black: how much ink it has), float64.

    Raises:
        ValueError: no image, NaN or inf, negative pixels.
    """
    return _pixels(images).mean((1, 2))


@isolated
def slant(images: Float[Tensor, "n 1 height width"]) -> Float[Tensor, " n"]:
    r"""Return how far each stroke leans to the right, like "/", in pixels of x for a pixel up, float64.

    $-\sum (x - \bar x)(y - \bar y) I / \sum (y - \bar y)^2 I$ with y downwards and means weighted by the brightness
    I. 0 for an image that is black or has a single row.

    Raises:
        ValueError: no image, NaN or inf, negative pixels.
    """
    pixels = _pixels(images)
    weight = pixels / pixels.sum((1, 2), keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    y = torch.arange(pixels.shape[1], dtype=torch.float64, device=pixels.device)[:, None]
    x = torch.arange(pixels.shape[2], dtype=torch.float64, device=pixels.device)[None]
    dy = y - (weight * y).sum((1, 2), keepdim=True)
    dx = x - (weight * x).sum((1, 2), keepdim=True)
    upright = (weight * dy.square()).sum((1, 2))
    lean = -(weight * dx * dy).sum((1, 2))
    return torch.where(upright > 0, lean / upright.where(upright > 0, 1.0), 0.0)


def _share(x: Tensor) -> float:
    return float(x.double().mean())


def _pixels(images: Tensor) -> Tensor:
    check_values("images", images)
    images = images.detach()
    if images.ndim != 4 or images.shape[1] != 1 or not images.numel():
        raise ValueError(f"images must be (n, 1, height, width) with at least one, got {tuple(images.shape)}")
    if float(images.min()) < 0:
        raise ValueError(f"images must have no negative pixels, got {float(images.min()):.3g}")
    return images.double()[:, 0]


def _groups(correct: Tensor, groups: Tensor) -> Tensor:
    check_tensor("correct", correct)
    if correct.dtype != torch.bool or correct.ndim != 1 or not len(correct):
        raise ValueError(f"correct must be boolean, (n,), n ≥ 1, got {correct.dtype} {tuple(correct.shape)}")
    check_tensor("groups", groups)
    if groups.shape != correct.shape:
        raise ValueError(f"groups must be {tuple(correct.shape)} like correct, got {tuple(groups.shape)}")
    check_codes("groups", groups, len(correct) * 10**3)
    return groups.long()
