"""Pseudo-labels: which of a classifier's answers on unlabelled data are taken for labels.

Notation: p the probabilities of a sample's classes; its pseudo-label is the likeliest class, its confidence max p.
Source: Yarowsky 1995, Unsupervised word sense disambiguation rivaling supervised methods, ACL, section 4 (a
threshold); Blum & Mitchell 1998, Combining labeled and unlabeled data with co-training, COLT, table 1 (a number of
each class).   Syllabus: 4.13
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mlcomp.checks import check_codes, check_finite, check_floating, check_interval, check_tensor, check_whole
from mlcomp.context import isolated, isolated_run
from mlcomp.modes import evaluating, home
from mlcomp.train.loop import train

NONE = -1
# fit(inputs, labels) learns and returns predict(inputs), which gives (n, classes) probabilities.
Predict = Callable[[Tensor], Tensor]
Fit = Callable[[Tensor, Tensor], Predict]


@isolated
def confident_labels(
    probabilities: Float[Tensor, "n classes"],
    *,
    threshold: float | None = None,
    best: int | None = None,
    best_per_class: int | None = None,
) -> Int64[Tensor, " n"]:
    """Return the likeliest class of each sample that one rule chooses, −1 for all others.

    Args:
        probabilities: rows that add up to 1; there may be no row. Of equally likely classes the first is taken.
        threshold: take every sample whose confidence is above it.
        best: take so many samples, the most confident ones.
        best_per_class: of the samples with the same likeliest class take so many, the most confident ones: fewer
            where there are fewer, none of a class that is nowhere the likeliest.
    Raises:
        ValueError: not exactly one rule, a threshold outside [0, 1], a number below 1, probabilities that are none.
    Guarantee: within what a rule ranks, no sample that is left has a higher confidence than one that is taken; of
        equal ones the earlier are taken.
    """
    _check_rule(threshold=threshold, best=best, best_per_class=best_per_class)
    p = check_probabilities(probabilities)
    confidence, classes = p.max(1)
    if threshold is not None:
        taken = confidence > threshold
    else:
        taken = torch.zeros_like(classes, dtype=torch.bool)
        for ranked in [torch.ones_like(taken)] if best is not None else [classes == c for c in classes.unique()]:
            rows = ranked.nonzero()[:, 0]
            order = confidence[rows].argsort(descending=True, stable=True)
            taken[rows[order[: best or best_per_class]]] = True
    return classes.where(taken, NONE)


def check_probabilities(probabilities: Tensor, samples: int | None = None) -> Tensor:
    """Return them as values; raise unless each of the rows (``samples`` of them) is a distribution over classes."""
    check_floating("probabilities", probabilities)
    check_finite("probabilities", probabilities)
    shape = tuple(probabilities.shape)
    if len(shape) != 2 or shape[1] == 0 or (samples is not None and shape[0] != samples):
        raise ValueError(f"probabilities must be ({'n' if samples is None else samples}, classes), got {shape}")
    p = probabilities.detach().double()
    # Rows in half precision add up to 1 within a few of its roundings of 0.001.
    if len(p) and (float(p.min()) < 0 or float((p.sum(1) - 1).abs().max()) > 0.01):
        raise ValueError("each row of probabilities must be ≥ 0 and add up to 1: give softmax(logits), not logits")
    return p


def check_rounds(rounds: int, *, threshold: float | None, best: int | None, best_per_class: int | None) -> None:
    """Raise unless the rule and the number of rounds are valid."""
    check_whole("rounds", rounds, 1)
    _check_rule(threshold=threshold, best=best, best_per_class=best_per_class)


def _check_rule(**rule: float | int | None) -> None:
    given = [name for name, value in rule.items() if value is not None]
    if len(given) != 1:
        raise ValueError(f"give exactly one of {', '.join(rule)}, got {', '.join(given) or 'none'}")
    name = given[0]
    value: object = rule[name]
    if name == "threshold":
        check_interval(name, value, "[0, 1]")  # type: ignore[arg-type]
    else:
        check_whole(name, value, 1)  # type: ignore[arg-type]


def check_labelled(inputs: Tensor, labels: Tensor, unlabelled: Tensor, *, name: str = "inputs") -> None:
    """Raise unless these are some labelled and some unlabelled samples of the same shape, without NaN."""
    for what, x in ((name, inputs), (f"unlabelled {name}", unlabelled)):
        check_tensor(what, x)
        if x.is_floating_point():
            check_finite(what, x)
        if x.ndim == 0 or len(x) == 0:
            raise ValueError(f"{what} must hold at least one sample, got shape {tuple(x.shape)}")
    check_tensor("labels", labels)
    if labels.shape != inputs.shape[:1]:
        raise ValueError(f"labels must be ({len(inputs)},) like the {name}, got {tuple(labels.shape)}")
    check_codes("labels", labels, torch.iinfo(torch.int64).max)
    if inputs.shape[1:] != unlabelled.shape[1:] or inputs.dtype != unlabelled.dtype:
        both = f"{inputs.dtype} {tuple(inputs.shape)} and {unlabelled.dtype} {tuple(unlabelled.shape)}"
        raise ValueError(f"labelled and unlabelled {name} must be alike but for their number, got {both}")


def learn(fit: Fit, inputs: Tensor, labels: Tensor, unlabelled: Tensor, given: Tensor) -> tuple[Predict, Tensor]:
    """Fit to the labelled, then the pseudo-labelled samples; return what predicts, and what of all unlabelled."""
    some = given != NONE
    predict = fit(torch.cat([inputs, unlabelled[some]]), torch.cat([labels.long(), given[some]]))
    p = check_probabilities(predict(unlabelled), len(unlabelled))
    if int(labels.max()) >= p.shape[1]:
        raise ValueError(f"labels must lie in 0 … {p.shape[1] - 1}, the classes predicted, got {int(labels.max())}")
    return predict, p


@isolated_run
def network_fit(make: Callable[[int], nn.Module], *, seed: int = 0, epochs: int, lr: float, **options: object) -> Fit:
    """Return a ``fit`` for :func:`mlcomp.train.self_training` and ``co_training``: it trains a new network each time.

    Args:
        make: ``make(seed)`` returns a new network from inputs to logits.
        seed: of ``make`` and of the training, in each fit.
        epochs, lr, options: as for :func:`mlcomp.train.train`; no bar is shown unless ``progress=True``.
    Raises:
        ValueError: ``checkpoint``; what ``train`` refuses, when the fit is called.
    """
    if "checkpoint" in options:
        raise ValueError("checkpoint cannot be given: each fit is a training of its own")
    run: dict = {"progress": False, **options, "seed": seed, "epochs": epochs, "lr": lr}

    @isolated_run
    def fit(inputs: Tensor, labels: Tensor) -> Predict:
        net = make(seed)
        train(net, inputs, labels, **run)

        @isolated_run
        def predict(batch: Tensor) -> Tensor:
            device = home(net)
            with evaluating(net):
                return torch.cat([net(part.to(device)) for part in batch.split(256)]).softmax(1).to(batch.device)

        return predict

    return fit
