"""Compressed digit networks beyond accuracy: calibration, noise, attacks, subgroups, the draw of calibration data.

    python experiments/trustworthiness.py                 # all; about seven minutes on one core
    python experiments/trustworthiness.py --part "32 images" --seeds 0   # what is there already is not run again

Measured on the 1000 held-out digits. Noise: standard deviation 0.1, one draw, pixels stay in [0, 1]. Attack: fast
gradient sign, epsilon 0.05, by the network's own gradient, and transferred from the dense network it was made of.

no data: round to nearest, magnitude pruning in each layer, whole filters by norm; nothing is drawn.
32 images, 128 images: methods that look at calibration images, which the seed draws from the training images.
BatchNorm: networks whose statistics were re-estimated on 128 images, drawn by the seed.
controls: weights set to zero at random, and Gaussian noise on the weights whose norm in each layer is that of a
    method's error: is it the method, or would any change of this size do the same?
sources: the dense network trained further on 2000 noisy or attacked images, then compressed (128 images): does the
    order of the dense networks stay?

Each network is a row of ``mlcomp/data/tables/trustworthiness.csv``.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks, which is no part of the installed package

from benchmarks.record import run_parts
from mlcomp.data import mnist5k
from mlcomp.data.committed_table import TABLES
from mlcomp.layerwise import compress, layer_weights, reestimate_batchnorm, with_weights
from mlcomp.layerwise.fit import copy_model
from mlcomp.metrics import (
    add_noise,
    changed_predictions,
    expected_calibration_error,
    fgsm,
    fit_temperature,
    ink,
    ranked_groups,
    slant,
    subgroup_accuracy,
    worst_by_chance,
)
from mlcomp.models import convnet
from mlcomp.modes import evaluating
from mlcomp.prune import group_magnitude, magnitude, random_pruning, sparsegpt, wanda
from mlcomp.quant import gptq, rtn
from mlcomp.train import train

RESULTS = TABLES / "trustworthiness.csv"
STD, EPSILON = 0.1, 0.05
GRID = {"scale_dtype": torch.float16}
Row = dict[str, object]
WITHOUT_DATA: dict[str, Callable] = {
    **{f"RTN, {bits} bits": partial(rtn, bits=bits, **GRID) for bits in (8, 4, 3, 2)},
    **{f"magnitude, {share:.0%}": partial(magnitude, sparsity=share) for share in (0.3, 0.5, 0.7)},
    "filters by norm, 10%": partial(group_magnitude, granularity="filter", sparsity=0.1),
}
WITH_DATA: dict[str, Callable] = {
    **{f"GPTQ, {bits} bits": partial(gptq, bits=bits, **GRID) for bits in (4, 3, 2)},
    **{f"SparseGPT, {share:.0%}": partial(sparsegpt, sparsity=share) for share in (0.5, 0.7)},
    "Wanda, 50%": partial(wanda, sparsity=0.5),
}


def batch(images: int, seed: int) -> list[Tensor]:
    """Return one batch of training images."""
    inputs = mnist5k("train")[0]
    return [inputs[torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))[:images]]]


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits of ``images``."""
    with evaluating(model):
        return torch.cat([model(part) for part in images.split(500)])


def temperature(logits: Tensor, labels: Tensor) -> float | str:
    """Return the best temperature, or "" if there is none: of a network at chance every one is too small."""
    try:
        return fit_temperature(logits, labels)
    except ValueError:
        return ""


@cache
def dense_side(source: str) -> tuple[Tensor, Tensor]:
    """Return the logits of a dense network, and the attack on it."""
    model, (images, labels) = SOURCES[source](), mnist5k("held_out")
    return logits_of(model, images), fgsm(model, images, labels, epsilon=EPSILON)


def measured(model: nn.Module, source: str = "given") -> Row:
    """Return all measures of a network that was made of a dense one."""
    images, labels = mnist5k("held_out")
    dense, transferred = dense_side(source)
    logits = logits_of(model, images)
    correct = logits.argmax(1) == labels
    groups = {"digit": labels, "ink": ranked_groups(ink(images)), "slant": ranked_groups(slant(images))}
    drawn = [torch.multinomial(logits.softmax(1), 1, generator=torch.Generator().manual_seed(s)) for s in range(20)]
    changes = changed_predictions(dense, logits, labels)

    def right(inputs: Tensor) -> float:
        return float((logits_of(model, inputs).argmax(1) == labels).double().mean())

    row: Row = {
        "accuracy": float(correct.double().mean()),
        "nll": float(F.cross_entropy(logits, labels)),
        "ece": expected_calibration_error(logits, labels),
        "ece_if_true": sum(expected_calibration_error(logits, y[:, 0]) for y in drawn) / len(drawn),
        "temperature": temperature(logits, labels),
        "noise": right(add_noise(images, std=STD)),
        "own": right(fgsm(model, images, labels, epsilon=EPSILON)),
        "transferred": right(transferred),
        **{f"worst_{name}": subgroup_accuracy(correct, group).worst for name, group in groups.items()},
        "worst_by_chance": float(worst_by_chance(correct, labels).mean()),
        "changed": changes.changed,
        "lost": changes.lost,
        "gained": changes.gained,
    }
    return {name: f"{value:.5f}" if isinstance(value, float) else value for name, value in row.items()}


def compressed(method: str, model: nn.Module, batches: list[Tensor] | None) -> tuple[nn.Module, float]:
    """Return the network, and its bits a weight: as packed, or 16 for each that is kept and a mask of 1."""
    function = {**WITHOUT_DATA, **WITH_DATA}[method]
    result, report = compress(model, batches, function, progress=False)
    weights = sum(w.numel() for w in layer_weights(model).values())
    if "bits" in method:
        return result, 8 * sum(row.nbytes_after for row in report.rows) / weights
    kept = sum(int((w != 0).sum()) for w in layer_weights(result).values())
    return result, 1 + 16 * kept / weights


def rows(methods: Iterable[str], images: int | None, seed: int) -> Iterator[Row]:
    """Yield the row of each method."""
    if images is None:
        yield {"method": "dense", "source": "given", "bits": 16} | measured(convnet())
    for method in methods:
        model, bits = compressed(method, convnet(), None if images is None else batch(images, seed))
        yield {"method": method, "source": "given", "bits": f"{bits:.2f}"} | measured(model)


def with_statistics(seed: int) -> Iterator[Row]:
    """Yield networks with statistics of their own."""
    for method in ("RTN, 2 bits", "GPTQ, 2 bits", "magnitude, 50%", "SparseGPT, 50%", "SparseGPT, 70%"):
        model, bits = compressed(method, convnet(), batch(128, seed))
        model = reestimate_batchnorm(model, batch(128, seed))
        yield {"method": method, "source": "given", "bits": f"{bits:.2f}"} | measured(model)


def controls(seed: int) -> Iterator[Row]:
    """Yield networks that were changed at random."""
    net, generator = convnet(), torch.Generator().manual_seed(seed)
    weights = layer_weights(net)
    pruned = with_weights(net, random_pruning(weights, sparsity=0.1, seed=seed))
    yield {"method": "random zeros, 10%", "source": "given", "bits": ""} | measured(pruned)
    for method in ("RTN, 3 bits", "RTN, 2 bits", "magnitude, 50%", "SparseGPT, 50%"):
        after = layer_weights(compressed(method, net, batch(128, seed))[0])
        noisy = {}
        for name, weight in weights.items():
            noise = torch.randn(weight.shape, generator=generator)
            noisy[name] = weight + noise * (after[name] - weight).norm() / noise.norm()
        yield {"method": f"noise like {method}", "source": "given", "bits": ""} | measured(with_weights(net, noisy))


@cache
def trained_on(kind: str) -> nn.Module:
    """Return the network after 2000 changed images, half of those that it knows."""
    net = copy_model(convnet())

    def augment(images: Tensor, generator: torch.Generator) -> Tensor:
        if kind == "noisy":
            return (images + STD * torch.randn(images.shape, generator=generator)).clamp(0, 1)
        with evaluating(net):
            guessed = net(images).argmax(1)  # the label itself would leak into the attack
        return fgsm(net, images, guessed, epsilon=EPSILON)

    train(net, *mnist5k("train", count=2000), epochs=1, lr=1e-3, seed=0, augment=augment, progress=False)
    return net


SOURCES: dict[str, Callable[[], nn.Module]] = {
    "given": convnet,
    **{kind: partial(trained_on, kind) for kind in ("noisy", "attacked")},
}


def sources(seed: int) -> Iterator[Row]:
    """Yield each dense network and what is made of it."""
    for source in ("noisy", "attacked"):
        net = SOURCES[source]()
        yield {"method": "dense", "source": source, "bits": 16} | measured(net, source)
        for method in (
            "RTN, 4 bits",
            "RTN, 3 bits",
            "RTN, 2 bits",
            "GPTQ, 2 bits",
            "magnitude, 50%",
            "SparseGPT, 50%",
        ):
            model, bits = compressed(method, net, batch(128, seed))
            yield {"method": method, "source": source, "bits": f"{bits:.2f}"} | measured(model, source)


PARTS: dict[str, Callable[[int], Iterator[Row]]] = {
    "no data": partial(rows, WITHOUT_DATA, None),
    "32 images": partial(rows, WITH_DATA, 32),
    "128 images": partial(rows, ("GPTQ, 2 bits", "SparseGPT, 50%"), 128),
    "BatchNorm": with_statistics,
    "controls": controls,
    "sources": sources,
}
SEEDS = {
    "no data": (0,),
    "32 images": range(6),
    "128 images": range(6),
    "BatchNorm": (0,),
    "controls": range(4),
    "sources": (0,),
}

if __name__ == "__main__":
    run_parts(PARTS, SEEDS, RESULTS, about=__doc__)
