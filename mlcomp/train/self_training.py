"""Self-training: a classifier labels data for itself, is fitted again with these labels, and so on.

Notation: a round chooses pseudo-labels by the last fit, and fits to the labelled and the pseudo-labelled samples.
Source: Yarowsky 1995, Unsupervised word sense disambiguation rivaling supervised methods, ACL, section 4 (labels of
a round may be withdrawn in the next).   Syllabus: 4.13
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from mlcomp.context import isolated_run
from mlcomp.train.pseudo_labels import NONE, Fit, Predict, check_labelled, check_rounds, confident_labels, learn


@dataclass(frozen=True)
class SelfTrained:
    """What the last fit predicts, and the pseudo-labels.

    Attributes:
        predict: inputs → (n, classes) probabilities, from the last fit.
        labels: (m,) pseudo-label of each unlabelled sample, −1 for none: what the last fit learned beside the labels.
        history: (rounds, m) the same after each round that changed them.
    """

    predict: Predict
    labels: Int64[Tensor, " m"]
    history: Int64[Tensor, "rounds m"]


@isolated_run
def self_training(
    fit: Fit,
    inputs: Shaped[Tensor, "n *shape"],
    labels: Shaped[Tensor, " n"],
    unlabelled: Shaped[Tensor, "m *shape"],
    *,
    rounds: int,
    threshold: float | None = None,
    best: int | None = None,
    best_per_class: int | None = None,
    revise: bool = False,
) -> SelfTrained:
    """Fit, take confident answers on unlabelled data for labels, and fit again.

    Args:
        fit: ``fit(inputs, labels)`` returns ``predict``, and ``predict(inputs)`` probabilities (n, classes); it is
            given the labelled samples first, then those with a pseudo-label in their order. For networks:
            :func:`mlcomp.train.network_fit`.
        inputs, labels: the labelled samples; classes count from 0.
        unlabelled: samples of the same shape.
        rounds: at most so many; it ends where a round changes nothing.
        threshold, best, best_per_class: one rule of :func:`mlcomp.train.confident_labels`.
        revise: False: a pseudo-label is final, and a round chooses among the samples that have none yet. True: each
            round chooses anew among all; in round r it takes r times ``best`` or ``best_per_class``.
    Returns:
        what predicts, the pseudo-labels and those of each round.
    Raises:
        ValueError: shapes that do not fit, not exactly one rule, bad options, or a ``predict`` that returns no
            probabilities of at least the classes in ``labels``.
    Guarantee: the pseudo-labels are those of a loop that follows these sentences; with ``revise=False`` a label never
        changes, and the loop is that of scikit-learn's ``SelfTrainingClassifier``.
    Cost: at most ``rounds`` + 1 fits.
    """
    check_rounds(rounds, threshold=threshold, best=best, best_per_class=best_per_class)
    check_labelled(inputs, labels, unlabelled)
    given = torch.full((len(unlabelled),), NONE, device=labels.device)
    history: list[Tensor] = []
    predict, p = learn(fit, inputs, labels, unlabelled, given)
    for number in range(1, rounds + 1):
        grow = number if revise else 1
        rule = {"threshold": threshold, "best": best and grow * best}
        rule |= {"best_per_class": best_per_class and grow * best_per_class}
        free = torch.ones_like(given, dtype=torch.bool) if revise else given == NONE
        new = given.clone()
        new[free] = confident_labels(p[free], **rule).to(new.device)  # type: ignore[arg-type]
        if torch.equal(new, given):
            break
        given = new
        history.append(given)
        predict, p = learn(fit, inputs, labels, unlabelled, given)
    return SelfTrained(predict, given, torch.stack(history) if history else given[None][:0])
