"""Quantize all linear layers of SmolLM2 by several methods at 2, 3 and 4 bits; write perplexity and size.

    python experiments/whole_model.py                            # all methods and bits; about three hours on one core
    python experiments/whole_model.py --methods gptq quip_sharp --bits 2
    python experiments/whole_model.py --blocks 1                 # the first block only, to try it; not recorded

The output head, tied to the embedding, stays as it is. Each layer's Hessian is taken from the dense model. Rows go to
``mlcomp/data/tables/whole_model.csv``; a run of the same settings that was stopped goes on from the last finished
layer (stored in the cache, 0.5 GB, until the row is there), and a row that is there already is not measured again.

The model's weights lie on a 4-bit grid with blocks of 32 already (Q4_1), so at 4 bits no method starts from a full
float model, and groups of 32 would find that grid again: none of the methods here uses them.
"""

import argparse
import shutil
import sys
import time
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks, which is no part of the installed package

from benchmarks.record import append, origin
from mlcomp.assets import cache_dir
from mlcomp.data import python_reference, token_batches
from mlcomp.data.committed_table import TABLES, committed_table
from mlcomp.layerwise import compress
from mlcomp.metrics import perplexity
from mlcomp.models import smollm2
from mlcomp.obs import gptq, quip, quip_sharp, spqr
from mlcomp.quant import aqlm, rtn

RESULTS = TABLES / "whole_model.csv"
SEED = 0  # of the rotations
CALIBRATION = {"length": 128, "count": 16, "batch_size": 8}
HELD_OUT = {"length": 256, "count": 12, "batch_size": 4}
# Thresholds that keep about one weight in a hundred out: the coarser the codes, the more each would like to.
OUTLIER_THRESHOLD = {2: 1.0, 3: 0.3, 4: 0.07}
# One code of 8 bits, two of 6, two of 8 for four weights: longer vectors need codebooks too large for such layers.
ADDITIVE = {2: {"books": 1, "code_bits": 8}, 3: {"books": 2, "code_bits": 6}, 4: {"books": 2, "code_bits": 8}}


def nearest(weight, hessian, *, bits, **options):
    """Round to nearest, which needs no Hessian."""
    return rtn(weight, bits=bits, **options)


def methods(bits):
    """Return the methods by name, bound to their options."""
    return {
        "rtn": partial(nearest, bits=bits),
        "gptq": partial(gptq, bits=bits),
        "gptq_mse": partial(gptq, bits=bits, clip="mse", order="activation"),
        "gptq_g64": partial(gptq, bits=bits, group_size=64),
        "quip": partial(quip, bits=bits, transform="hadamard", seed=SEED),
        "quip_sharp": partial(quip_sharp, bits=bits, seed=SEED),
        "spqr": partial(spqr, bits=bits, threshold=OUTLIER_THRESHOLD[bits]),
        "aqlm": partial(aqlm, dim=4, tau=0.03, **ADDITIVE[bits]),
    }


def linear_layers(model, blocks=None):
    """Return the names of the linear layers in the first ``blocks`` blocks (None: in all)."""
    return [
        layer
        for layer, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and layer.startswith("model.layers.")
        and (blocks is None or int(layer.split(".")[2]) < blocks)
    ]


def store(name, bits, blocks):
    """Return the folder of a run's finished layers."""
    return cache_dir() / "whole_model" / f"{name}-{bits}-{blocks or 'all'}"


def run(model, text, name, bits, blocks):
    """Compress the first ``blocks`` blocks (None: all) by one method; return one row of results."""
    folder = store(name, bits, blocks)
    start = time.perf_counter()
    compressed, report = compress(
        model,
        text["calibration"],
        methods(bits)[name],
        layers=linear_layers(model, blocks),
        sequential=False,
        resume=folder,
    )
    seconds = time.perf_counter() - start
    rows = [row for row in report.rows if row.status == "compressed"]
    return {
        "method": name,
        "bits": bits,
        "bits_per_weight": round(8 * sum(row.nbytes_after for row in rows) / report.compressed_weights, 3),
        "perplexity": round(perplexity(compressed, text["held_out"]), 3),
        "mean_layer_error": round(sum(row.error for row in rows) / len(rows), 5),
        "layers": len(rows),
        "method_seconds": round(sum(row.seconds for row in rows), 1),
        "total_seconds": round(seconds, 1),
    }


def main(argv=None):
    """Run what is asked for and not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=list(methods(2)), default=list(methods(2)))
    parser.add_argument("--bits", nargs="+", type=int, choices=(2, 3, 4), default=[2, 3, 4])
    parser.add_argument("--blocks", type=int, help="the first so many blocks only; nothing is recorded")
    options = parser.parse_args(argv)
    model, tokenizer = smollm2()
    text = {
        "calibration": token_batches(tokenizer, python_reference("calibration"), **CALIBRATION),
        "held_out": token_batches(tokenizer, python_reference("held_out"), **HELD_OUT),
    }
    have = committed_table(RESULTS.stem) if RESULTS.exists() else []
    finished = {(row["method"], row["bits"]) for row in have}
    wanted = [("dense", 32)] + [(name, bits) for bits in options.bits for name in options.methods]
    for name, bits in wanted:
        if options.blocks is None and (name, str(bits)) in finished:
            continue
        if name == "dense":
            row = {"method": name, "bits": bits, "bits_per_weight": 32.0}
            row["perplexity"] = round(perplexity(model, text["held_out"]), 3)
            row |= {"mean_layer_error": 0.0, "layers": 0, "method_seconds": 0.0, "total_seconds": 0.0}
        else:
            row = run(model, text, name, bits, options.blocks)
        print(row, flush=True)
        if options.blocks is None:
            append([row | origin(seed=SEED)], RESULTS)
        shutil.rmtree(store(name, bits, options.blocks), ignore_errors=True)  # "dense" has none


if __name__ == "__main__":
    main()
