"""Binarized networks beside full precision, on two sets of real digits, with several seeds.

    python experiments/binarized_networks.py                 # both sets; about twenty minutes on two cores
    python experiments/binarized_networks.py --data digits   # what is there already is not run again

Perceptrons with two hidden layers of 256 units, BatchNorm after each layer and squared hinge loss; inputs are the
pixels as whole numbers. "same bytes" is a full-precision network so narrow that its weights take the bytes of the
binary ones. Each method learns at the best rate of its grid on the last eighth of the training images, seed 0;
then it is trained on all of them with each seed. Each run is a row of
``mlcomp/data/tables/binarized_networks.csv``: errors in percent.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks, which is no part of the installed package

from benchmarks.record import append, origin
from mlcomp.data import digits, mnist5k
from mlcomp.data.committed_table import TABLES, committed_table
from mlcomp.metrics import accuracy
from mlcomp.quant import ShiftAdaMax, ShiftBatchNorm, binarized_mlp, clip_weights, scaled_rates, squared_hinge
from mlcomp.train import train

RESULTS = TABLES / "binarized_networks.csv"
ADAM, ADAMAX = (1e-3, 3e-3, 1e-2), (2**-9, 2**-8, 2**-7)
REAL: dict[str, Any] = {"weights": "real", "activation": "relu"}


@dataclass(frozen=True)
class Data:
    """Images, the largest value of a pixel, how long to train, and how many of the largest learning rates to try."""

    load: Any
    scale: int
    inputs: int
    narrow: int
    epochs: int
    rates: int
    seeds: int
    methods: tuple[str, ...]

    def split(self, name: str) -> tuple[Tensor, Tensor]:
        """Return whole pixels and labels."""
        x, y = self.load(name)
        return (x * self.scale).round(), y


# Method → (options of the network, optimizer, learning rates).
METHODS: dict[str, tuple[dict[str, Any], Any, tuple[float, ...]]] = {
    "full precision": (REAL, torch.optim.Adam, ADAM),
    "same bytes": (REAL, torch.optim.Adam, ADAM),
    "binary weights": ({"activation": "relu"}, scaled_rates(torch.optim.Adam), ADAM),
    "binarized": ({}, scaled_rates(torch.optim.Adam), ADAM),
    "stochastic neurons": ({"activation": "stochastic"}, scaled_rates(torch.optim.Adam), ADAM),
    "shift-based BatchNorm": ({"norm": ShiftBatchNorm}, scaled_rates(torch.optim.Adam), ADAM),
    "AdaMax": ({}, scaled_rates(torch.optim.Adamax), ADAMAX),
    "shift-based AdaMax": ({}, scaled_rates(ShiftAdaMax), ADAMAX),
    "both shift-based": ({"norm": ShiftBatchNorm}, scaled_rates(ShiftAdaMax), ADAMAX),
}
SOME = tuple(method for method in METHODS if method != "binary weights")
DATA = {
    "digits": Data(digits, 16, 64, 26, 25, 3, 5, tuple(METHODS)),
    "mnist5k": Data(mnist5k, 255, 784, 10, 10, 2, 3, SOME),
}


def run(data: Data, method: str, lr: float, seed: int, images: tuple[Tensor, Tensor]) -> torch.nn.Module:
    """Return a trained network."""
    options, optimizer, _ = METHODS[method]
    width = data.narrow if method == "same bytes" else 256
    net = binarized_mlp((data.inputs, width, width, 10), seed=seed, **options)
    after = None if options.get("weights") == "real" else clip_weights(net)
    settings = {"epochs": data.epochs, "batch_size": 64, "loss": squared_hinge, "progress": False}
    train(net, *images, lr=lr, seed=seed, optimizer=optimizer, after_step=after, **settings)
    return net


def best_rate(data: Data, method: str) -> float:
    """Return the learning rate with the fewest errors on the last eighth of the training images."""
    x, y = data.split("train")
    cut = len(x) * 7 // 8
    error = {}
    for lr in METHODS[method][2][-data.rates :]:
        net = run(data, method, lr, 0, (x[:cut], y[:cut]))
        error[lr] = 1 - accuracy(net, x[cut:], y[cut:])
    print(method, error, flush=True)
    return min(error, key=partial(dict.__getitem__, error))


def main(argv: list[str] | None = None) -> None:
    """Run the methods that are asked for and not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    options = parser.parse_args(argv)
    have = {(row["data"], row["method"]) for row in committed_table(RESULTS.stem)} if RESULTS.exists() else set()
    for name in options.data:
        data = DATA[name]
        for method in data.methods:
            if (name, method) in have:
                continue
            lr, rows = best_rate(data, method), []
            for seed in range(data.seeds):
                began = time.perf_counter()
                net = run(data, method, lr, seed, data.split("train"))
                errors = {s: round(100 * (1 - accuracy(net, *data.split(s))), 3) for s in ("held_out", "train")}
                row = {"data": name, "method": method, "lr": lr, **errors}
                rows.append(row | {"seconds": round(time.perf_counter() - began, 1)} | origin(seed=seed))
                print(rows[-1], flush=True)
            append(rows, RESULTS)


if __name__ == "__main__":
    main()
