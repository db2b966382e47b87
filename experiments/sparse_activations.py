"""Set small activations in the gated MLPs of SmolLM2 to zero; write perplexity and the share of zeros.

    python experiments/sparse_activations.py                     # all; about a quarter of an hour on one core
    python experiments/sparse_activations.py --methods cats      # some; what is there already is not run again

cats: one threshold on |v| for each MLP, v = SiLU(gate x). product: the same on |v · up x|, which saves W_down only.
relufication: ReLU in the place of SiLU. No training anywhere. Beside them, with as many zeros:
static: the same neurons for all tokens, those with the least mean |v · up x| on the calibration tokens.
random: each activation with the same chance, the others divided by the chance to stay.

Thresholds come from 512 calibration tokens. Each run is a row of ``mlcomp/data/tables/sparse_activations.csv``: the
perplexity of 12 sequences of 256 held-out tokens, the mean loss of each in nats, the share of zeros on four of them,
and the threshold of each layer.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks, which is no part of the installed package

from benchmarks.record import append, origin
from mlcomp.checks import removals
from mlcomp.data import python_reference, token_batches
from mlcomp.data.committed_table import TABLES, committed_table
from mlcomp.layerwise import layer_weights, with_weights
from mlcomp.layerwise.fit import copy_model
from mlcomp.metrics import perplexity
from mlcomp.models import smollm2
from mlcomp.prune import activation_sparsity, activation_thresholds, relufication, threshold_mlps
from mlcomp.prune.dynamic.gated_mlps import activations, find_gated_mlps

RESULTS = TABLES / "sparse_activations.csv"
SEED = 0  # of the random zeros
SPARSITIES = (0.5, 0.7, 0.9)
CALIBRATION = {"length": 256, "count": 2, "batch_size": 2}
HELD_OUT = {"length": 256, "count": 12, "batch_size": 1}

Made = tuple[nn.Module, list[float]]  # a model, and the thresholds of its layers


def thresholded(model: nn.Module, batches: list, sparsity: float, on: str) -> Made:
    """Return the model with thresholds on v or on v · up x."""
    found = activation_thresholds(model, batches, sparsity=sparsity, on=on)
    return threshold_mlps(model, found, on=on), list(found.values())


def static(model: nn.Module, batches: list, sparsity: float) -> Made:
    """Return the model without the neurons whose mean |v · up x| is least."""
    means: dict[str, torch.Tensor] = {}
    for name, values in activations(model, batches, on="product"):
        means[name] = means.get(name, 0) + values.abs().sum(0)
    weights = layer_weights(model, [f"{name}.down_proj" for name in means])
    for (name, weight), mean in zip(weights.items(), means.values(), strict=True):
        weights[name] = weight.clone()
        weights[name][:, mean.argsort()[: removals(sparsity, len(mean))]] = 0
    return with_weights(model, weights), []


def random(model: nn.Module, sparsity: float) -> Made:
    """Return the model with each activation zero with the same chance, as dropout has it."""
    result, generator = copy_model(model), torch.Generator().manual_seed(SEED)

    def drop(module: nn.Module, args: tuple) -> tuple:
        return (args[0] * (torch.rand(args[0].shape, generator=generator) >= sparsity) / (1 - sparsity),)

    for mlp in find_gated_mlps(result).values():
        mlp.down_proj.register_forward_pre_hook(drop)
    return result, []


METHODS: dict[str, tuple[tuple[float, ...], Callable[[nn.Module, list, float], Made]]] = {
    "dense": ((0.0,), lambda model, batches, sparsity: (model, [])),
    "cats": (SPARSITIES, lambda model, batches, sparsity: thresholded(model, batches, sparsity, "gate")),
    "product": (SPARSITIES, lambda model, batches, sparsity: thresholded(model, batches, sparsity, "product")),
    "relufication": ((0.0,), lambda model, batches, sparsity: (relufication(model), [])),
    "static": (SPARSITIES, static),
    "random": (SPARSITIES[:1], lambda model, batches, sparsity: random(model, sparsity)),
}


def zeros(name: str, sparsity: float, model: nn.Module, batches: list) -> float:
    """Return the share of activations that are not needed, mean over the layers."""
    if name in ("static", "random"):
        return sparsity
    shares = activation_sparsity(model, batches).values()
    return sum(shares) / len(shares)


def main(argv: list[str] | None = None) -> None:
    """Run what is asked for and not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    options = parser.parse_args(argv)
    model, tokenizer = smollm2()
    calibration = token_batches(tokenizer, python_reference("calibration"), **CALIBRATION)
    held_out = token_batches(tokenizer, python_reference("held_out"), **HELD_OUT)
    have = committed_table(RESULTS.stem) if RESULTS.exists() else []
    for name in options.methods:
        sparsities, make = METHODS[name]
        for sparsity in sparsities:
            if any((row["method"], float(row["sparsity"])) == (name, sparsity) for row in have):
                continue
            began = time.perf_counter()
            changed, thresholds = make(model, calibration, sparsity)
            losses = [math.log(perplexity(changed, [sequence])) for sequence in held_out]
            row = {"method": name, "sparsity": sparsity}
            row["perplexity"] = round(math.exp(sum(losses) / len(losses)), 3)
            row["zeros"] = round(zeros(name, sparsity, changed, held_out[:4]), 4)
            row["losses"] = " ".join(f"{loss:.4f}" for loss in losses)
            row["thresholds"] = " ".join(f"{t:.4f}" for t in thresholds)
            row["seconds"] = round(time.perf_counter() - began, 1)
            print(row, flush=True)
            append([row | origin(seed=SEED if name == "random" else None)], RESULTS)


if __name__ == "__main__":
    main()
