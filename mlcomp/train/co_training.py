"""Co-training: two classifiers, each with its own view of the samples, label data for each other.

Notation: a view is a part of what is known of a sample (the words of a page, the words of links to it). U' is the
pool of unlabelled samples from which a round chooses.
Source: Blum & Mitchell 1998, Combining labeled and unlabeled data with co-training, COLT, table 1 (the algorithm) and
its experiments (the product of both probabilities as the combined classifier).   Syllabus: 4.13
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from mlcomp.checks import check_whole
from mlcomp.context import isolated_run
from mlcomp.train.pseudo_labels import NONE, Fit, Predict, check_labelled, check_rounds, confident_labels, learn


@dataclass(frozen=True)
class CoTrained:
    """What both classifiers predict, and the pseudo-labels.

    Attributes:
        predicts: of each view: its inputs → (n, classes) probabilities.
        labels: (m,) pseudo-label of each unlabelled sample, −1 for none.
        history: (rounds, m) the same after each round.
    """

    predicts: tuple[Predict, Predict]
    labels: Int64[Tensor, " m"]
    history: Int64[Tensor, "rounds m"]

    @isolated_run
    def predict(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the product of both views' probabilities, each row divided by its sum."""
        p = self.predicts[0](first) * self.predicts[1](second)
        total = p.sum(1, keepdim=True)
        # Two views that are sure of different classes exclude all: then none is likelier than another.
        return torch.where(total > 0, p / total.where(total > 0, 1.0), 1 / p.shape[1])


@isolated_run
def co_training(
    fits: tuple[Fit, Fit],
    views: tuple[Tensor, Tensor],
    labels: Tensor,
    unlabelled: tuple[Tensor, Tensor],
    *,
    best_per_class: int,
    rounds: int,
    pool: int | None = None,
    seed: int = 0,
) -> CoTrained:
    """Let each view's classifier label, in each round, the samples of which it is most confident, for both.

    Args:
        fits: of each view, as for :func:`mlcomp.train.self_training`.
        views: both views of the labelled samples, (n, …) each.
        labels: (n,), classes count from 0.
        unlabelled: both views of the unlabelled samples, (m, …) each.
        best_per_class: so many samples of each class that it predicts a classifier labels in a round. (The paper has
            two classes, with a number for each.)
        rounds: at most; it ends where no unlabelled sample is left.
        pool: the size of U', drawn at random and filled up after each round; None: all unlabelled samples.
        seed: of the pool.
    Raises:
        ValueError: views of different lengths or shapes that do not fit, bad options, no probabilities.
    Guarantee: the labels are those of a loop that follows these sentences. A label is final.
    Deviation: where both choose a sample for different classes, which the paper leaves open, the more confident one
        has its way, the first view if they are equally confident.
    Cost: 2·(``rounds`` + 1) fits at most.
    """
    check_rounds(rounds, threshold=None, best=None, best_per_class=best_per_class)
    pairs: tuple[object, ...] = (fits, views, unlabelled)
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ValueError("fits, views and unlabelled must be pairs, with an entry for each view")
    for number in range(2):
        check_labelled(views[number], labels, unlabelled[number], name=f"view {number + 1}")
    if len(unlabelled[0]) != len(unlabelled[1]):
        raise ValueError(f"unlabelled views differ in length: {len(unlabelled[0])} and {len(unlabelled[1])}")
    if pool is not None:
        check_whole("pool", pool, 1)
    check_whole("seed", seed, 0)
    count = len(unlabelled[0])
    order = torch.arange(count, device=labels.device)
    if pool is not None:
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(count, generator=generator, device="cpu").to(labels.device)
    given = torch.full((count,), NONE, device=labels.device)
    history: list[Tensor] = []

    def fitted() -> list[tuple[Predict, Tensor]]:
        return [learn(fits[v], views[v], labels, unlabelled[v], given) for v in range(2)]

    both = fitted()
    for _ in range(rounds):
        free = order[given[order] == NONE][:pool]  # the pool: what is left of it, then the next in the order
        if not len(free):
            break
        given = given.clone()
        given[free] = _chosen([p[free] for _, p in both], best_per_class)
        history.append(given)
        both = fitted()
    predicts = both[0][0], both[1][0]
    return CoTrained(predicts, given, torch.stack(history) if history else given[None][:0])


def _chosen(probabilities: list[Tensor], best_per_class: int) -> Tensor:
    """Return the labels that either view chooses; where both do and differ, those of the more confident one."""
    first, second = (confident_labels(p, best_per_class=best_per_class) for p in probabilities)
    sure, surer = (p.amax(1) for p in probabilities)
    take_first = (first != NONE) & ((second == NONE) | (sure >= surer))
    return first.where(take_first, second)
