"""Quantization-aware training against pruning with fine-tuning, at equal size and equal epochs, on the convnet.

    python experiments/pruning_vs_quantization.py                    # seeds 0 and 1; some minutes on two cores
    python experiments/pruning_vs_quantization.py --seeds 2 3        # more seeds, added to what is there
    python experiments/pruning_vs_quantization.py --epochs 1 --count 200 --out FILE    # a try

For b = 8 … 2 bits the trained convnet is trained on for the same few epochs, once with its weights quantized to b
bits (LSQ, one step an output channel, activations untouched, all layers), once while it is pruned gradually by
magnitude, one threshold for the network, to the sparsity 1 − b/16, the size of b bits if the places of 16-bit weights
cost nothing. Numbers go to ``mlcomp/data/tables/pruning_vs_quantization.json``, run by run, with the honest sizes,
too: quantized codes with their steps; kept weights with one bit a weight for their places. Finished runs are not
repeated; delete the file to start over.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks, which is no part of the installed package

from benchmarks.record import origin
from mlcomp.data import mnist5k, mnist_calibration, random_shift
from mlcomp.data.committed_table import TABLES, read_results, write_results
from mlcomp.metrics import accuracy
from mlcomp.models import convnet
from mlcomp.prune import gradual_pruning, layer_weights, network_sparsity
from mlcomp.quant.aware_training.qat import finish_qat, prepare_qat
from mlcomp.train import train

RESULTS = TABLES / "pruning_vs_quantization.json"
BITS = (8, 7, 6, 5, 4, 3, 2)
METHODS = ("quantization", "pruning")


def recipe(epochs: int, seed: int) -> dict:
    """Return what both methods share."""
    return {"epochs": epochs, "lr": 1e-3, "batch_size": 64, "seed": seed, "augment": random_shift, "progress": False}


def quantize(bits: int, inputs, labels, options: dict) -> tuple[torch.nn.Module, float]:
    """Return the network trained with ``bits``-bit weights, and the bits a weight that it takes."""
    model = prepare_qat(convnet(), mnist_calibration(256), weight_bits=bits, input_bits=None)
    train(model, inputs, labels, **options)
    result = finish_qat(model)
    weights = sum(w.numel() for w in layer_weights(convnet()).values())
    # A code a weight, and a float32 step for each output channel.
    steps = sum(len(w) for w in layer_weights(convnet()).values())
    return result.model, bits + 32 * steps / weights


def prune(bits: int, inputs, labels, options: dict) -> tuple[torch.nn.Module, float]:
    """Return the network pruned to the sparsity 1 − bits/16, and its bits a weight: 16 if kept, 1 for the mask."""
    model = gradual_pruning(convnet(), inputs, labels, sparsity=1 - bits / 16, **options).model
    kept = 1 - network_sparsity(model)
    return model, 16 * kept + 1


def run(method: str, bits: int, seed: int, *, epochs: int, count: int | None) -> dict:
    """Run one method at one size and return its row."""
    inputs, labels = mnist5k("train", count=count)
    start = time.perf_counter()
    model, stored = {"quantization": quantize, "pruning": prune}[method](bits, inputs, labels, recipe(epochs, seed))
    return {
        "method": method,
        "bits": bits,
        "seed": seed,
        "accuracy": accuracy(model, *mnist5k("held_out")),
        "stored_bits_per_weight": round(stored, 4),
        "seconds": round(time.perf_counter() - start, 1),
        "origin": origin(seed=seed),
    }


def main() -> None:
    """Run what is not in the results file yet, and write it after each run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--count", type=int, help="training images; all 4000 if not given")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    setting = {"epochs": args.epochs, "training_images": args.count or 4000, "lr": 1e-3, "batch_size": 64}
    results = {"setting": setting, "accuracy_original": accuracy(convnet(), *mnist5k("held_out")), "rows": []}
    if args.out.exists():
        results = read_results(args.out)
        if results["setting"] != setting:
            raise SystemExit(
                f"{args.out} holds another setting, {results['setting']}: delete it or name another --out"
            )
    done = {(row["method"], row["bits"], row["seed"]) for row in results["rows"]}
    for seed in args.seeds:
        for bits in BITS:
            for method in METHODS:
                if (method, bits, seed) in done:
                    continue
                row = run(method, bits, seed, epochs=args.epochs, count=args.count)
                print(row, flush=True)
                results["rows"] = sorted([*results["rows"], row], key=lambda r: (r["seed"], -r["bits"], r["method"]))
                write_results(results, args.out)


if __name__ == "__main__":
    main()
