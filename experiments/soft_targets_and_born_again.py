"""Soft targets on 3 % of the data, and born-again networks.

    python experiments/soft_targets_and_born_again.py                # all; a quarter of an hour on one core
    python experiments/soft_targets_and_born_again.py --part digits      # or bytes, generations
    python experiments/soft_targets_and_born_again.py --part bytes --seeds 0    # what is there is not run again

digits: a perceptron 784-256-256-10 learns from all 4000 training images of mnist5k; others of its kind from 120 of
    them, 3 %, 639 steps each: by hard labels, smoothed ones, the first one's soft targets at several temperatures,
    and half hard labels, half the soft targets of an untrained network.
bytes: the course's byte-level language model of width 32, trained on 3 MB of text, teaches new ones on 3 % of one
    part of it (the prose of Python's reference), 403 steps; accuracy is that of the next byte, as of a frame of
    speech.
generations: three born-again generations of a perceptron 64-128-128-10 on 300 of scikit-learn's digits, 498 steps
    each, by soft targets and by the two treatments that take knowledge out of them; beside them networks that learned
    from labels, smoothed or not, with the same seeds. Ensembles are of generations 1 to 3.

What is drawn by a seed is the same for all methods. Each network is a row of
``mlcomp/data/tables/soft_targets_and_born_again.csv``: accuracy on its training data and on held-out data.
"""

import math
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks, which is no part of the installed package

from benchmarks.record import run_parts
from experiments.distillation import seeded
from mlcomp.data import digits, mnist5k, python_reference, reference_bytes
from mlcomp.data.committed_table import TABLES
from mlcomp.distill import born_again, ensemble_log_probabilities, train_student
from mlcomp.models import byte_lm
from mlcomp.modes import evaluating
from mlcomp.train import train

RESULTS = TABLES / "soft_targets_and_born_again.csv"
SEEDS = {"digits": range(3), "generations": range(5), "bytes": range(3)}
SHARE = 0.03
WINDOW, STRIDE = 128, 32
GENERATIONS = 3

Data = tuple[Tensor, Tensor]
Row = dict[str, object]
mnist, small_digits = cache(mnist5k), cache(digits)


def perceptron(*widths: int) -> nn.Sequential:
    """Return a perceptron of these widths, ReLU in between."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inp, out in pairwise(widths):
        layers += [nn.Linear(inp, out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def logits_of(net: nn.Module, x: Tensor) -> Tensor:
    """Return the logits of all inputs."""
    with evaluating(net):
        return torch.cat([net(part) for part in x.split(128)])


def measured(logits: Tensor, labels: Tensor) -> Row:
    """Return accuracy and mean cross-entropy [nats]; the classes come last."""
    right = (logits.argmax(-1) == labels).double().mean()
    loss = F.cross_entropy(logits.flatten(0, -2), labels.flatten())
    return {"accuracy": round(float(right), 5), "loss": round(float(loss), 4)}


def both(net: nn.Module, own: Data, held_out: Data) -> Row:
    """Return the measures on held-out data, and the accuracy on its own."""
    mine = measured(logits_of(net, own[0]), own[1])["accuracy"]
    return measured(logits_of(net, held_out[0]), held_out[1]) | {"train_accuracy": mine}


def balanced(data: Data, count: int, seed: int) -> Data:
    """Return as many of each of the ten classes, drawn by the seed."""
    x, y = data
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    each = [order[y[order] == c][: count // 10] for c in range(10)]
    chosen = torch.cat(each)
    return x[chosen], y[chosen]


def of_labels(net: nn.Module, data: Data, run: dict, loss: Callable[..., Tensor]) -> nn.Module:
    """Train ``net`` on labels."""
    train(net, *data, loss=loss, **run)
    return net


def methods(new: Callable[[], nn.Module], teacher: nn.Module, data: Data, run: dict, hots: dict) -> Iterator:
    """Yield (method, student) for labels, smoothed labels, and each temperature."""
    yield "hard", of_labels(new(), data, run, next_class)
    yield "smoothed", of_labels(new(), data, run, partial(next_class, label_smoothing=0.1))
    for name, temperature in hots.items():
        yield name, train_student(new(), teacher, *data, temperature=temperature, **run).model


def next_class(logits: Tensor, labels: Tensor, **options: float) -> Tensor:
    """Return the cross-entropy with the classes last, for each sample or each place of a sequence."""
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), **options)


def digits_part(seed: int) -> Iterator[Row]:
    """Yield the rows of a seed."""
    everything, held_out = mnist("train"), mnist("held_out")
    new = partial(seeded, partial(perceptron, 784, 256, 256, 10))
    run = {"lr": 2e-3, "seed": seed, "progress": False}
    teacher = of_labels(new(100 + seed), everything, run | {"epochs": 20, "batch_size": 50}, next_class)
    yield {"method": "all data", **both(teacher, everything, held_out)}
    few = balanced(everything, round(SHARE * len(everything[0])), seed)
    run |= {"epochs": 213, "batch_size": 40}
    hots = {f"T = {t}": float(t) for t in (1, 4, 20)} | {"logits": math.inf}
    for name, net in methods(partial(new, seed), teacher, few, run, hots):
        yield {"method": name, **both(net, few, held_out)}
    unknowing = train_student(new(seed), new(200 + seed), *few, temperature=4.0, alpha=0.5, **run).model
    yield {"method": "untrained teacher, half labels", **both(unknowing, few, held_out)}


def windows(text: Tensor, stride: int) -> Data:
    """Return sequences of WINDOW bytes, and the byte after each of theirs."""
    cut = text.unfold(0, WINDOW + 1, stride)
    return cut[:, :-1].contiguous(), cut[:, 1:].contiguous()


def bytes_part(seed: int) -> Iterator[Row]:
    """Yield the rows of a seed."""
    text = torch.tensor(list(python_reference("calibration").encode()), dtype=torch.int64)
    size = round(SHARE * len(text))
    start = int(torch.randint(len(text) - size, (), generator=torch.Generator().manual_seed(seed)))
    few = windows(text[start : start + size], STRIDE)
    held_out = windows(reference_bytes(32769), WINDOW)
    teacher, new = byte_lm(32), partial(byte_lm, 32, pretrained=False, seed=seed)
    yield {"method": "all data", **both(teacher, few, held_out)}
    run = {"lr": 4e-3, "seed": seed, "progress": False, "batch_size": 8, "epochs": 13}
    for name, net in methods(new, teacher, few, run, {f"T = {t}": float(t) for t in (1, 2, 4)}):
        yield {"method": name, **both(net, few, held_out)}
    early = of_labels(new(), few, run | {"epochs": 6}, next_class)
    yield {"method": "hard, half of the steps", **both(early, few, held_out)}


def generations_part(seed: int) -> Iterator[Row]:
    """Yield the rows of a seed."""
    x, y = small_digits("all")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    (own, mine), (rest, theirs) = ((x[i], y[i]) for i in (order[:300], order[300:]))
    make = partial(seeded, partial(perceptron, 64, 128, 128, 10))
    first = 10 * seed
    run = {"lr": 2e-3, "batch_size": 50, "epochs": 83, "progress": False}
    kinds = {"soft, T = 1": {}, "soft, T = 4": {"temperature": 4.0}, "permuted": {"teaching": "permuted"}}
    kinds |= {"confidence": {"teaching": "confidence"}}
    nets = {
        name: [g.model for g in born_again(make, own, mine, generations=GENERATIONS, seed=first, **kind, **run)]
        for name, kind in kinds.items()
    }
    for name, smoothing in (("labels", 0.0), ("smoothed", 0.1)):
        loss = partial(next_class, label_smoothing=smoothing)
        starts = [first + k for k in range(GENERATIONS + 1)]
        nets[name] = [of_labels(make(s), (own, mine), {**run, "seed": s}, loss) for s in starts]
    for name, line in nets.items():
        for number, net in enumerate(line):
            yield {"method": name, "generation": number, **both(net, (own, mine), (rest, theirs))}
        joint = ensemble_log_probabilities([logits_of(net, rest) for net in line[1:]])
        yield {"method": name, "generation": "ensemble", **measured(joint, theirs), "train_accuracy": ""}


PARTS = {"bytes": bytes_part, "digits": digits_part, "generations": generations_part}


def rows(part: str, seed: int) -> Iterator[Row]:
    """Yield the rows of a part, all with the same columns."""
    for row in PARTS[part](seed):
        yield {"method": row["method"], "generation": row.get("generation", ""), **row}


if __name__ == "__main__":
    run_parts({part: partial(rows, part) for part in PARTS}, SEEDS, RESULTS, about=__doc__)
