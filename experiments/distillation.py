"""Where a teacher pays on mnist5k: students from scratch, inputs without labels, and compressed networks.

    python experiments/distillation.py                       # all parts; about half an hour on one core
    python experiments/distillation.py --part scratch        # or unlabelled, compressed
    python experiments/distillation.py --part scratch --seeds 0     # what is there already is not run again

scratch: a perceptron with 16 hidden units learns from the course's perceptron, a small convolutional network from the
    course's convolutional one, on 100, 500 or 4000 images, always 640 steps of 50. Soft targets at several
    temperatures stand beside labels, smoothed labels (soft targets that know nothing of the image) and a teacher that
    was never trained. Hints are learned along, or in the first quarter of the steps.
unlabelled: labels for 100 images only, inputs of all 4000, 640 steps. Besides the teacher's soft and hard answers: a
    teacher of the student's own kind that knows no more than the 100 labels, and one that was never trained. The
    course's networks learned from the same 4000 images; so a third student, the perceptron again, sees one half of
    them, and its teacher, another start of the same network, was trained on the other half only.
compressed: the course's perceptron with 95 or 98 % of its weights removed, or with two bits a weight, retrained by
    what it was, on 4000 or 200 images, 320 steps; 1600 steps for 98 %.

The images of a seed are drawn by it, the same for all methods. Each run is a row of
``mlcomp/data/tables/distillation.csv``: accuracy and mean cross-entropy on the 1000 held-out digits.
"""

import math
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks, which is no part of the installed package

from benchmarks.record import run_parts
from mlcomp.data import mnist5k
from mlcomp.data.committed_table import TABLES
from mlcomp.distill import compressed_student, train_hints, train_student
from mlcomp.layerwise import keep_zeros, layer_weights, with_weights
from mlcomp.metrics import accuracy
from mlcomp.models import convnet, mlp
from mlcomp.modes import evaluating
from mlcomp.prune import global_magnitude
from mlcomp.quant import prepare_qat
from mlcomp.train import train

RESULTS = TABLES / "distillation.csv"
SEEDS = (0, 1, 2)
BATCH, SCRATCH, RETRAIN, LONG = 50, 640, 320, 1600
SMOOTHED = partial(F.cross_entropy, label_smoothing=0.1)
SOFT = {"T = 1": 1.0, "T = 4": 4.0, "T = 10": 10.0, "logits": math.inf}

Data = tuple[Tensor, Tensor]
Row = tuple[str, int, str, nn.Module]
mnist = cache(mnist5k)


def drawn(count: int, seed: int) -> Data:
    """Return as many images of each class, drawn by the seed."""
    x, y = mnist("train")
    tens = torch.randperm(len(x) // 10, generator=torch.Generator().manual_seed(seed))[: count // 10]
    chosen = (10 * tens[:, None] + torch.arange(10)).flatten()  # labels run 0, 1, …, 9 again and again
    return x[chosen], y[chosen]


def options(images: int, steps: int, seed: int, lr: float) -> dict:
    """Return what makes ``steps`` steps on this number of images."""
    epochs, left = divmod(steps * BATCH, images)
    if left:
        raise ValueError(f"{steps} steps of {BATCH} are no whole number of epochs of {images}")
    return {"epochs": epochs, "batch_size": BATCH, "lr": lr, "seed": seed, "progress": False}


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Return a new network from this seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def perceptron() -> nn.Sequential:
    """784 → 16 → 10."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10))


def convolutional() -> nn.Sequential:
    """Two convolutions, 8 and 16 channels, to 7×7, and a linear head."""
    first, second = nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(784, 10))


# The student, its teacher, and which layer of the student learns from which of the teacher.
PAIRS: dict[str, tuple[Callable[[], nn.Module], Callable[..., nn.Module], dict[str, str]]] = {
    "perceptron": (perceptron, mlp, {"2": "4"}),
    "convolutional": (convolutional, convnet, {"3": "block2"}),
}


def labelled(start: nn.Module, data: Data, loss: Callable[..., Tensor], run: dict) -> nn.Module:
    """Return a copy trained on labels, its zeros held."""
    net = with_weights(start, layer_weights(start))
    train(net, *data, loss=loss, after_step=keep_zeros(net), **run)
    return net


def scratch(seed: int) -> Iterator[Row]:
    """Yield (student, images, method, trained network)."""
    for name, (make, teachers, hints) in PAIRS.items():
        start, teacher = seeded(make, seed), teachers()
        for images in (100, 500, 4000):
            data, run = drawn(images, seed), options(images, SCRATCH, seed, 2e-3)
            yield name, images, "labels", labelled(start, data, F.cross_entropy, run)
            yield name, images, "smoothed labels", labelled(start, data, SMOOTHED, run)
            for method, temperature in SOFT.items():
                yield name, images, method, train_student(start, teacher, *data, temperature=temperature, **run).model
            half = {"temperature": 4.0, "alpha": 0.5} | run
            yield name, images, "T = 4, half labels", train_student(start, teacher, *data, **half).model
            unknowing = teachers(pretrained=False, seed=100 + seed)
            yield name, images, "untrained teacher, half labels", train_student(start, unknowing, *data, **half).model
            along = {"temperature": 1.0, "hints": hints} | run
            yield name, images, "hint and T = 1", train_student(start, teacher, *data, **along).model
            first, rest = (options(images, share * SCRATCH // 4, seed, 2e-3) for share in (1, 3))
            hinted = train_hints(start, teacher, data[0], hints=hints, **first).model
            yield (
                name,
                images,
                "hint, then T = 1",
                train_student(hinted, teacher, *data, temperature=1.0, **rest).model,
            )


def unlabelled(seed: int) -> Iterator[Row]:
    """Yield the same, of students that see all inputs."""
    x, y = mnist("train")
    run = options(len(x), SCRATCH, seed, 2e-3)
    for name, (make, teachers, _) in PAIRS.items():
        start, teacher = seeded(make, seed), teachers()
        with evaluating(teacher):
            answers = torch.cat([teacher(part).argmax(1) for part in x.split(500)])
        yield name, 4000, "all labels", labelled(start, (x, y), F.cross_entropy, run)
        yield name, 4000, "hard answers", labelled(start, (x, answers), F.cross_entropy, run)
        for method in ("T = 1", "T = 4"):
            yield name, 4000, method, train_student(start, teacher, x, temperature=SOFT[method], **run).model
        few = options(100, SCRATCH, seed, 2e-3)
        own = labelled(seeded(make, 200 + seed), drawn(100, seed), F.cross_entropy, few)
        yield name, 4000, "teacher of 100 labels, T = 1", train_student(start, own, x, temperature=1.0, **run).model
        none = teachers(pretrained=False, seed=100 + seed)
        yield name, 4000, "untrained teacher, T = 1", train_student(start, none, x, temperature=1.0, **run).model
    yield from other_half(seed)


def other_half(seed: int) -> Iterator[Row]:
    """Yield the same for a student and a teacher that have seen no image in common."""
    x, y = mnist("train")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    known, new = order.chunk(2)
    start, teacher = seeded(perceptron, seed), mlp(pretrained=False, seed=300 + seed)
    train(teacher, x[known], y[known], **options(2000, 800, seed, 2e-3))
    run = options(len(new), SCRATCH, seed, 2e-3)
    with evaluating(teacher):
        answers = teacher(x[new]).argmax(1)
    yield "other half", 0, "teacher", teacher
    yield "other half", 2000, "all labels", labelled(start, (x[new], y[new]), F.cross_entropy, run)
    yield "other half", 2000, "hard answers", labelled(start, (x[new], answers), F.cross_entropy, run)
    for method in ("T = 1", "T = 4"):
        net = train_student(start, teacher, x[new], temperature=SOFT[method], **run).model
        yield "other half", 2000, method, net


def compressed(seed: int) -> Iterator[Row]:
    """Yield the same, of compressed networks: student is how."""
    teacher, x = mlp(), mnist("train")[0]
    students = {
        f"{100 * s:.0f} % zeros": with_weights(teacher, global_magnitude(layer_weights(teacher), sparsity=s))
        for s in (0.95, 0.98)
    }
    students["2 bits"] = prepare_qat(teacher, x[:500].split(50), weight_bits=2, input_bits=None)
    for name, start in students.items():
        yield name, 0, "not retrained", start
        for images in (4000, 200):
            data, run = drawn(images, seed), options(images, RETRAIN, seed, 1e-3)
            yield name, images, "labels", labelled(start, data, F.cross_entropy, run)
            yield name, images, "smoothed labels", labelled(start, data, SMOOTHED, run)
            taught = partial(compressed_student, start, **run)
            for method in ("T = 1", "T = 4", "logits"):
                yield name, images, method, taught(teacher, *data, temperature=SOFT[method]).model
            yield name, images, "hint and T = 1", taught(teacher, *data, temperature=1.0, hints={"4": "4"}).model
            yield name, images, "other teacher, T = 1", taught(convnet(), *data, temperature=1.0).model
        every = options(len(x), RETRAIN, seed, 1e-3)
        yield name, 200, "T = 1, all inputs", compressed_student(start, teacher, x, temperature=1.0, **every).model
    long, data = options(len(x), LONG, seed, 1e-3), drawn(4000, seed)
    name, start = "98 % zeros, five times the steps", students["98 % zeros"]
    yield name, 4000, "labels", labelled(start, data, F.cross_entropy, long)
    for method in ("T = 1", "T = 4"):
        yield name, 4000, method, compressed_student(start, teacher, *data, temperature=SOFT[method], **long).model


def measured(net: nn.Module) -> dict[str, float]:
    """Return accuracy and mean cross-entropy [nats] on the held-out digits."""
    x, y = mnist("held_out")
    with evaluating(net):
        loss = float(F.cross_entropy(net(x), y))
    return {"accuracy": accuracy(net, x, y), "loss": round(loss, 4)}


PARTS = {"scratch": scratch, "unlabelled": unlabelled, "compressed": compressed}


def rows(part: str, seed: int) -> Iterator[dict[str, object]]:
    """Yield a row for each network of a part."""
    for student, images, method, net in PARTS[part](seed):
        yield {"student": student, "images": images, "method": method, **measured(net)}


if __name__ == "__main__":
    run_parts({part: partial(rows, part) for part in PARTS}, dict.fromkeys(PARTS, SEEDS), RESULTS, about=__doc__)
