"""Prune at four moments of a network's life, with the same number of training epochs and the same sparsity.

    python experiments/pruning_taxonomy.py          # some minutes on two cores
    python experiments/pruning_taxonomy.py --quick  # one seed, one sparsity, two epochs, nothing written
    python experiments/pruning_taxonomy.py --row "during training, layer-normalized"  # this row only

The network is the multilayer perceptron of the course on mnist5k, 235 146 weights, 12 epochs in every row:

    dense              12 epochs, no pruning
    train-prune-tune   6 epochs dense, prune by global magnitude, 6 epochs with the mask fixed
    at initialization  prune the untrained network (SNIP, magnitude, or at random), 12 epochs with the mask fixed
    during training    12 epochs, the cubic schedule from the first step to the ninth epoch, by global magnitude;
                       once more by layer-normalized magnitude
    post-training      12 epochs dense, prune by layer-normalized magnitude; then nothing more, or calibration of the
                       layers on 1024 training images without labels (weight, bias, masked fine-tuning)

Numbers go to ``mlcomp/data/tables/pruning_taxonomy.json``: accuracy on the 1000 held-out digits for each seed, and
the seconds of everything after the dense training that rows share.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks, which is no part of the installed package

from benchmarks.record import origin
from mlcomp.data import mnist5k, mnist_calibration, random_shift
from mlcomp.data.committed_table import TABLES, read_results, write_results
from mlcomp.metrics import accuracy
from mlcomp.models import mlp
from mlcomp.prune import (
    calibrate,
    global_magnitude,
    gradual_pruning,
    keep_zeros,
    layer_normalized,
    layer_weights,
    network_sparsity,
    random_pruning,
    snip,
    with_weights,
)
from mlcomp.train import train

RESULTS = TABLES / "pruning_taxonomy.json"
SPARSITIES = (0.8, 0.9, 0.95, 0.98)
SEEDS = (0, 1, 2)
EPOCHS = 12
TRAINING = {"lr": 2e-3, "batch_size": 64, "weight_decay": 1e-2, "augment": random_shift, "progress": False}


class Run:
    """One seed: the networks that rows share, and the rows."""

    def __init__(self, seed: int, epochs: int):
        self.seed, self.epochs = seed, epochs
        self.data = mnist5k("train")
        self.start = mlp(pretrained=False, seed=seed)

    @cached_property
    def dense(self) -> nn.Module:
        """The network after all epochs, nothing pruned."""
        return self.trained(self.start, self.epochs)

    @cached_property
    def half(self) -> nn.Module:
        """The network after half of the epochs, nothing pruned."""
        return self.trained(self.start, self.epochs // 2)

    def trained(self, model: nn.Module, epochs: int) -> nn.Module:
        """Return a copy of ``model`` after training that keeps its zeros."""
        result = with_weights(model, layer_weights(model))
        train(result, *self.data, epochs=epochs, seed=self.seed, after_step=keep_zeros(result), **TRAINING)
        return result

    def pruned(self, model: nn.Module, pruner: Callable, sparsity: float) -> nn.Module:
        """Return a copy of ``model`` with the pruner's weights."""
        return with_weights(model, pruner(layer_weights(model), sparsity=sparsity))

    def gradual(self, pruner: Callable, sparsity: float) -> nn.Module:
        """Return the network that was pruned while it trained."""
        options = {"epochs": self.epochs, "every": 20, "seed": self.seed, **TRAINING}
        return gradual_pruning(self.start, *self.data, sparsity=sparsity, pruner=pruner, **options).model

    def rows(self, sparsity: float) -> dict[str, Callable[[], nn.Module]]:
        """Return name → what makes the sparse network."""
        batch = [t[:100] for t in self.data]  # ten of each class

        def at_start(weights: dict) -> nn.Module:
            return self.trained(with_weights(self.start, weights), self.epochs)

        start = layer_weights(self.start)
        return {
            "train-prune-tune": lambda: self.trained(
                self.pruned(self.half, global_magnitude, sparsity), self.epochs - self.epochs // 2
            ),
            "at initialization, SNIP": lambda: at_start(snip(self.start, *batch, sparsity=sparsity)),
            "at initialization, magnitude": lambda: at_start(global_magnitude(start, sparsity=sparsity)),
            "at initialization, random": lambda: at_start(random_pruning(start, sparsity=sparsity, seed=self.seed)),
            "during training": lambda: self.gradual(global_magnitude, sparsity),
            "during training, layer-normalized": lambda: self.gradual(layer_normalized, sparsity),
            "post-training, nothing more": lambda: self.pruned(self.dense, layer_normalized, sparsity),
            "post-training, calibrated": lambda: calibrate(
                self.dense, self.pruned(self.dense, layer_normalized, sparsity), mnist_calibration(1024)
            ),
        }


def run(seeds: tuple[int, ...], sparsities: tuple[float, ...], epochs: int, only: str | None = None) -> dict:
    """Return the numbers of all rows, or of the row ``only``."""
    found: dict[str, dict] = {}
    began = time.perf_counter()
    for seed in seeds:
        one = Run(seed, epochs)
        if only is None or only.startswith(("train-", "post-")):
            _ = one.dense, one.half  # shared by rows, so trained before the clocks start
        if only is None:
            found.setdefault("dense", {"accuracy": {}})["accuracy"].setdefault("0", []).append(
                accuracy(one.dense, *mnist5k("held_out"))
            )
        for sparsity in sparsities:
            rows = one.rows(sparsity)
            for name, make in rows.items() if only is None else [(only, rows[only])]:
                start = time.perf_counter()
                model = make()
                seconds = time.perf_counter() - start
                if abs(network_sparsity(model) - sparsity) > 1e-5:
                    raise RuntimeError(f"{name} at {sparsity}: sparsity is {network_sparsity(model)}")
                row = found.setdefault(name, {"accuracy": {}, "seconds": {}})
                row["accuracy"].setdefault(str(sparsity), []).append(accuracy(model, *mnist5k("held_out")))
                row["seconds"].setdefault(str(sparsity), []).append(round(seconds, 2))
                print(f"seed {seed}  {sparsity:.2f}  {name:<34} {row['accuracy'][str(sparsity)][-1]:.3f}", flush=True)
    options = {key: value for key, value in TRAINING.items() if key not in ("augment", "progress")}
    return {
        "network": "mlp",
        "training": options | {"epochs": epochs, "augment": "random_shift, 2 pixels"},
        "seeds": list(seeds),
        "rows": found,
        "seconds": round(time.perf_counter() - began, 1),
        "origins": dict.fromkeys(found, origin(seed=seeds)),
    }


def main(arguments: list[str]) -> None:
    """Run, print, and write the results file."""
    if "--quick" in arguments:
        print(json.dumps(run((0,), (0.9,), 2), indent=1))
        return
    if "--row" in arguments:
        name = arguments[arguments.index("--row") + 1]
        added = run(SEEDS, SPARSITIES, EPOCHS, only=name)
        results = read_results(RESULTS)
        if differ := [key for key in ("training", "seeds") if results[key] != added[key]]:
            raise RuntimeError(f"the rows in the file were made otherwise: {', '.join(differ)}")
        results["origins"][name] = added["origins"][name]
        results["rows"][name] = added["rows"][name]
        results["seconds"] = round(results["seconds"] + added["seconds"], 1)
    else:
        results = run(SEEDS, SPARSITIES, EPOCHS)
    write_results(results, RESULTS)


if __name__ == "__main__":
    main(sys.argv[1:])
