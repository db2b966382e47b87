"""Self-training, co-training and meta pseudo labels on scikit-learn's digits, over many splits.

    python experiments/weak_supervision.py                         # all; about ten minutes on one core
    python experiments/weak_supervision.py --part selves           # or views, networks
    python experiments/weak_supervision.py --part networks --seeds 0   # what is there is not run again

A seed splits the 1797 images of 8×8 pixels: 600 held out; 1, 2 or 5 labelled ones of each class; the others are
unlabelled.

selves: logistic regression on all pixels. Self-training by several rules, 12 rounds each: the 5 most confident of
    each class, more by 5 in each round (revised) or 5 new ones (final); 50 of all; 5 of each predicted class drawn at
    random in place of the most confident; everything; above a threshold, also with classes weighted evenly in the
    fit. Beside them scikit-learn's label spreading over 7 nearest neighbours, and training on all labels.
views: logistic regression on halves of the pixels, combined by the product of their probabilities. Co-training (3 of
    each class by each view, 10 rounds) with left and right halves, with random halves, and with second halves that
    were exchanged between unlabelled images of the same class: that makes the views independent given the class. (It
    needs the labels, so it is no method but a test of the assumption.) As controls self-training of each half by
    itself, and of all pixels, with as many labels and rounds. Rows "dependence" measure the views: how much oftener
    both halves' classifiers of all labels err together than if they were independent given the class, and what share
    of the second half's variance within a class ridge regression predicts from the first one.
networks: a perceptron 64-128-10, 2 labels a class, 1007 steps: on the labels, one and an ensemble of three; on
    pseudo-labels of all unlabelled images by the first; meta pseudo labels with several weights of the student's
    feedback: 0 none, 64 (the size of a batch) the gradient of the student's loss itself, 1000 so large that it is
    as large as the labels' gradient, negative ones the sign of the public code; and 1000 without the moving average.
    The column "gain" says by how much the student's loss on the labelled images fell in all [nats].

Each is a row of ``mlcomp/data/tables/weak_supervision.csv``: accuracy on the held-out images.
"""

import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.semi_supervised import LabelSpreading
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks, which is no part of the installed package

from benchmarks.record import run_parts
from experiments.distillation import seeded
from experiments.soft_targets_and_born_again import logits_of, perceptron
from mlcomp.data import digits
from mlcomp.data.committed_table import TABLES
from mlcomp.distill import ensemble_log_probabilities
from mlcomp.train import co_training, meta_pseudo_labels, network_fit, self_training, train

RESULTS = TABLES / "weak_supervision.csv"
SEEDS = {"selves": range(20), "views": range(20), "networks": range(10)}
HELD_OUT, LABELS, ROUNDS = 600, (1, 2, 5), 12
EACH, CO_ROUNDS = 3, 10
STEPS = {"epochs": 53, "batch_size": 64, "lr": 2e-3, "progress": False}
FEW = {"epochs": 1007, "batch_size": 64, "lr": 2e-3, "progress": False}
FEEDBACK = (0, 64, -64, 1000, -1000)
COLUMNS = (
    "labels",
    "method",
    "accuracy",
    "single",
    "given",
    "right",
    "top_class",
    "rounds",
    "together",
    "r2",
    "gain",
)

Row = dict[str, object]
Split = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
pixels = cache(digits)


def split(labels: int, seed: int) -> Split:
    """Return inputs and classes: labelled, unlabelled, held out."""
    x, y = pixels("all")
    x = x.flatten(1)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    out, rest = order[:HELD_OUT], order[HELD_OUT:]
    chosen = torch.cat([rest[y[rest] == c][:labels] for c in range(10)])
    others = rest[~torch.isin(rest, chosen)]
    return x[chosen], y[chosen], x[others], y[others], x[out], y[out]


def logistic(x: Tensor, y: Tensor, **options: object) -> Callable[[Tensor], Tensor]:
    """Fit logistic regression; return what predicts probabilities."""
    model = LogisticRegression(max_iter=300, **options).fit(x.numpy(), y.numpy())
    return lambda inputs: torch.from_numpy(model.predict_proba(inputs.numpy()))


def shuffled_confidence(x: Tensor, y: Tensor, *, seed: int) -> Callable[[Tensor], Tensor]:
    """The same classes, with a confidence drawn at random: what is chosen by it is drawn from all."""
    predict, generator = logistic(x, y), torch.Generator().manual_seed(seed)

    def drawn(inputs: Tensor) -> Tensor:
        p = predict(inputs)
        sure = 0.6 + 0.4 * torch.rand(len(p), 1, generator=generator, dtype=p.dtype)
        return ((1 - sure) / (p.shape[1] - 1)).expand_as(p).scatter(1, p.argmax(1, keepdim=True), sure)

    return drawn


def accuracy(p: Tensor, y: Tensor) -> float:
    """Return the share of right answers."""
    return round(float((p.argmax(1) == y).double().mean()), 5)


def measured(p: Tensor, y: Tensor, given: Tensor | None = None, truth: Tensor | None = None) -> Row:
    """Return the accuracy, the largest share of one class among the answers, and facts of the pseudo-labels."""
    row: Row = {"accuracy": accuracy(p, y)}
    row["top_class"] = round(float(p.argmax(1).bincount(minlength=10).max() / len(y)), 4)
    if given is not None and truth is not None:
        some = given >= 0
        right = float((given[some] == truth[some]).double().mean()) if some.any() else float("nan")
        row |= {"given": int(some.sum()), "right": round(right, 5) if some.any() else ""}
    return row


def selves(seed: int) -> Iterator[Row]:
    """Yield the rows of self-training."""
    for labels in LABELS:
        x, y, u, truth, out, classes = split(labels, seed)
        if labels == LABELS[0]:
            everything = logistic(torch.cat([x, u]), torch.cat([y, truth]))
            yield {"labels": "all", "method": "supervised", **measured(everything(out), classes)}
        yield {"labels": labels, "method": "supervised", **measured(logistic(x, y)(out), classes)}
        even = partial(logistic, class_weight="balanced")
        methods = {
            "5 a class, revised": (logistic, {"best_per_class": 5, "revise": True}),
            "5 a class, final": (logistic, {"best_per_class": 5}),
            "50 of all, final": (logistic, {"best": 50}),
            "5 a class at random, revised": (
                partial(shuffled_confidence, seed=seed),
                {"best_per_class": 5, "revise": True},
            ),
            "everything, revised": (logistic, {"threshold": 0.0, "revise": True}),
            "threshold 0.5, final": (logistic, {"threshold": 0.5}),
            "threshold 0.5, revised": (logistic, {"threshold": 0.5, "revise": True}),
            "threshold 0.5, final, even classes": (even, {"threshold": 0.5}),
            "threshold 0.9, final": (logistic, {"threshold": 0.9}),
        }
        for method, (fit, rule) in methods.items():
            got = self_training(fit, x, y, u, rounds=ROUNDS, **rule)
            row = measured(got.predict(out), classes, got.labels, truth)
            yield {"labels": labels, "method": method, **row, "rounds": len(got.history)}
        spread = LabelSpreading(kernel="knn", n_neighbors=7, max_iter=200)
        spread.fit(torch.cat([x, u]).numpy(), torch.cat([y, torch.full_like(truth, -1)]).numpy())
        with np.errstate(invalid="ignore"):  # 0/0 where no neighbour has a label
            p = torch.from_numpy(spread.predict_proba(out.numpy())).nan_to_num()
        yield {"labels": labels, "method": "label spreading", **measured(p, classes)}


def exchanged(classes: Tensor, seed: int) -> Tensor:
    """Return an order in which each sample is at the place of a random one of its class."""
    order, generator = torch.arange(len(classes)), torch.Generator().manual_seed(seed)
    for c in range(10):
        mine = (classes == c).nonzero()[:, 0]
        order[mine] = mine[torch.randperm(len(mine), generator=generator)]
    return order


def halves(seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the pixels of both views, by the name of the split."""
    column = torch.arange(64) % 8
    drawn = torch.randperm(64, generator=torch.Generator().manual_seed(seed))
    sides = (column < 4).nonzero()[:, 0], (column >= 4).nonzero()[:, 0]
    return {"left and right": sides, "random halves": (drawn[:32], drawn[32:])}


def views(seed: int) -> Iterator[Row]:
    """Yield the rows of co-training."""
    for labels in LABELS:
        x, y, u, truth, out, classes = split(labels, seed)
        moved = exchanged(truth, seed)
        for name, (a, b) in halves(seed).items():
            if labels == LABELS[0]:
                for changed in (False, True):
                    method = f"dependence, {name}" + ", exchanged" * changed
                    yield {"labels": "all", "method": method} | dependence(seed, a, b, moved=changed)
            both, rest, held = ((t[:, a], t[:, b]) for t in (x, u, out))
            row = partial(of_views, labels, held, classes, truth)
            yield row(f"supervised, {name}", tuple(logistic(view, y) for view in both))
            cases = {f"co-training, {name}": rest, f"co-training, {name}, exchanged": (rest[0], rest[1][moved])}
            for method, unlabelled in cases.items():
                options = {"best_per_class": EACH, "rounds": CO_ROUNDS}
                got = co_training((logistic, logistic), both, y, unlabelled, **options)
                yield row(method, got.predicts, got.labels) | {"rounds": len(got.history)}
            alone = [
                self_training(logistic, view, y, other, best_per_class=2 * EACH, rounds=CO_ROUNDS)
                for view, other in zip(both, rest, strict=True)
            ]
            right = sum(float((g.labels == truth).sum() / (g.labels >= 0).sum()) for g in alone) / 2
            yield row(f"each by itself, {name}", tuple(g.predict for g in alone)) | {"right": round(right, 5)}
        whole = self_training(logistic, x, y, u, best_per_class=2 * EACH, rounds=CO_ROUNDS)
        facts = measured(whole.predict(out), classes, whole.labels, truth)
        yield {"labels": labels, "method": "self-training, all pixels", **facts}


def of_views(
    labels: int,
    held: tuple[Tensor, Tensor],
    classes: Tensor,
    truth: Tensor,
    method: str,
    predicts: tuple,
    given: Tensor | None = None,
) -> Row:
    """Return what both classifiers do together, and each by itself."""
    p = [predict(view) for predict, view in zip(predicts, held, strict=True)]
    single = sum(accuracy(q, classes) for q in p) / 2
    together = measured(p[0] * p[1], classes, given, truth)
    return {"labels": labels, "method": method, **together, "single": round(single, 5)}


def dependence(seed: int, a: Tensor, b: Tensor, *, moved: bool) -> Row:
    """Return how dependent two views are given the class, on held-out images, learned from all labels."""
    x, y, u, truth, out, classes = split(1, seed)
    own, mine = torch.cat([x, u]), torch.cat([y, truth])
    order, held_order = torch.arange(len(own)), torch.arange(len(out))
    if moved:
        order, held_order = exchanged(mine, seed), exchanged(classes, seed)
    first, second = (own[:, a], own[order][:, b]), (out[:, a], out[held_order][:, b])
    wrong = [logistic(view, mine)(held).argmax(1) != classes for view, held in zip(first, second, strict=True)]
    expected = 0.0
    for c in range(10):
        one, other = (w[classes == c].double() for w in wrong)
        expected += float(one.mean() * other.sum())
    together = float((wrong[0] & wrong[1]).sum()) / expected
    return {"together": round(together, 3), "r2": round(explained(first, mine, second, classes), 4)}


def explained(
    views: tuple[Tensor, Tensor], classes: Tensor, held: tuple[Tensor, Tensor], held_classes: Tensor
) -> float:
    """Return the share of the second view's variance within classes that ridge regression on the first predicts."""
    error, total = 0.0, 0.0
    for c in range(10):
        here, there = classes == c, held_classes == c
        first, second = (view[here].double() for view in views)
        middle, target = first.mean(0), second.mean(0)
        first = first - middle
        damped = first.T @ first + torch.eye(first.shape[1], dtype=first.dtype)
        weights = torch.linalg.solve(damped, first.T @ (second - target))
        rest = held[1][there].double() - target
        total += float(rest.square().sum())
        error += float((rest - (held[0][there].double() - middle) @ weights).square().sum())
    return 1 - error / total


def networks(seed: int) -> Iterator[Row]:
    """Yield the rows of perceptrons with two labels a class."""
    x, y, u, truth, out, classes = split(2, seed)
    new = partial(seeded, partial(perceptron, 64, 128, 10))
    fit = network_fit(new, seed=3 * seed, **FEW)
    first = fit(x, y)
    yield {"method": "supervised", **measured(first(out), classes)}
    others = [network_fit(new, seed=3 * seed + i, **FEW)(x, y)(out).log() for i in (1, 2)]
    joint = ensemble_log_probabilities([first(out).log(), *others])
    yield {"method": "supervised, ensemble of 3", **measured(joint, classes)}
    given = first(u).argmax(1)
    student = network_fit(new, seed=3 * seed + 1, **STEPS)(torch.cat([x, u]), torch.cat([y, given]))
    yield {"method": "pseudo-labels", **measured(student(out), classes, given, truth)}
    runs: dict[str, dict] = {str(weight): {"feedback": float(weight)} for weight in FEEDBACK}
    runs[f"{FEEDBACK[-2]}, no average"] = {"feedback": float(FEEDBACK[-2]), "decay": 1.0}
    for name, options in runs.items():
        teacher, student = new(3 * seed), new(3 * seed + 1)
        history = meta_pseudo_labels(teacher, student, x, y, u, seed=seed, **options, **STEPS)
        more = {"gain": round(float(history.gain.sum()), 5)}
        given = logits_of(teacher, u).argmax(1)
        yield {"method": f"teacher, {name}", **measured(logits_of(teacher, out), classes, given, truth), **more}
        yield {"method": f"student, {name}", **measured(logits_of(student, out), classes), **more}
        train(student, x, y, epochs=100, lr=5e-4, seed=seed, progress=False)
        yield {"method": f"student, {name}, then labels", **measured(logits_of(student, out), classes), **more}


PARTS = {"selves": selves, "views": views, "networks": networks}


def rows(part: str, seed: int) -> Iterator[Row]:
    """Yield the rows of a part, all with the same columns."""
    for row in PARTS[part](seed):
        yield {name: row.get(name, 2 if name == "labels" else "") for name in COLUMNS}


if __name__ == "__main__":
    run_parts({part: partial(rows, part) for part in PARTS}, SEEDS, RESULTS, about=__doc__)
