"""GPTQ's options at 4 bits in groups of 64 on SmolLM2: the perplexity of each, on several draws of calibration text.

    python experiments/four_bit_recipes.py                    # all recipes, three draws; twenty minutes on two cores
    python experiments/four_bit_recipes.py --recipes affine_mse --draws 0
    python experiments/four_bit_recipes.py --blocks 2         # the first blocks only, to try it; nothing is recorded

Each recipe changes one thing of the one before it, or of "affine_mse", which ``mlcomp.deploy.recipes`` recommends.
Calibration: 16 sequences of 256 tokens of the Python reference, from one of several places; perplexity: 8 sequences
of 512 tokens of the part held out. The output head, tied to the embedding, stays as it is. Rows go to
``mlcomp/data/tables/four_bit_recipes.csv``; one that is there already is not measured again.

The model's weights lay on a 4-bit grid of blocks of 32 before, so these are errors of quantizing them again.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks, which is no part of the installed package

from benchmarks.record import append, origin
from mlcomp.data import python_reference, token_batches
from mlcomp.data.committed_table import TABLES, committed_table
from mlcomp.layerwise import compress
from mlcomp.metrics import perplexity
from mlcomp.models import smollm2
from mlcomp.obs import gptq
from mlcomp.quant import rtn

RESULTS = TABLES / "four_bit_recipes.csv"
DRAWS = 3
CALIBRATION = {"length": 256, "count": 16, "batch_size": 4}
HELD_OUT = {"length": 512, "count": 8, "batch_size": 4}
GROUPS = {"bits": 4, "group_size": 64}
HALF = {"scale_dtype": torch.float16}
BY_ACTIVATION = {"order": "activation", "static_groups": True}
AFFINE_MSE = partial(gptq, **GROUPS, **HALF, **BY_ACTIVATION, clip="mse")
# name → method, and whether the inputs come from the compressed part.
RECIPES = {
    "rtn": (partial(rtn, **GROUPS, symmetric=True), False),
    "natural": (partial(gptq, **GROUPS, symmetric=True), True),
    "natural_static": (partial(gptq, **GROUPS, symmetric=True, static_groups=True), True),
    "by_activation": (partial(gptq, **GROUPS, symmetric=True, **BY_ACTIVATION), True),
    "affine": (partial(gptq, **GROUPS, **HALF, **BY_ACTIVATION), True),
    "affine_mse": (AFFINE_MSE, True),
    "affine_mse_natural": (partial(gptq, **GROUPS, **HALF, clip="mse"), True),
    "affine_mse_on_the_way": (partial(AFFINE_MSE, static_groups=False), True),
    "affine_mse_dense_inputs": (AFFINE_MSE, False),
    "affine_mse_damp_0.1": (partial(AFFINE_MSE, damp=0.1), True),
    "rtn_affine_mse": (partial(rtn, **GROUPS, **HALF, clip="mse"), False),
}
UNDRAWN = ("dense", "rtn", "rtn_affine_mse")  # see no calibration text


def calibration(tokenizer, draw):
    """Return the calibration batches of one draw: from another place of the text."""
    text = python_reference("calibration")
    return token_batches(tokenizer, text[draw * len(text) // (DRAWS + 1) :], **CALIBRATION)


def run(model, tokenizer, name, draw, blocks):
    """Compress by one recipe; return one row of results."""
    method, sequential = RECIPES[name]
    chosen = [
        layer
        for layer, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and layer.startswith("model.layers.")
        and (blocks is None or int(layer.split(".")[2]) < blocks)
    ]
    start = time.perf_counter()
    batches = calibration(tokenizer, draw)
    compressed, report = compress(model, batches, method, layers=chosen, sequential=sequential)
    seconds = time.perf_counter() - start
    rows = [row for row in report.rows if row.status == "compressed"]
    return {
        "recipe": name,
        "draw": draw,
        "bits_per_weight": round(8 * sum(row.nbytes_after for row in rows) / report.compressed_weights, 4),
        "perplexity": round(perplexity(compressed, held_out(tokenizer)), 3),
        "method_seconds": round(sum(row.seconds for row in rows), 1),
        "total_seconds": round(seconds, 1),
    }


def held_out(tokenizer):
    """Return the batches that perplexity is measured on."""
    return token_batches(tokenizer, python_reference("held_out"), **HELD_OUT)


def main(argv=None):
    """Run what is asked for and not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--draws", nargs="+", type=int, choices=range(DRAWS), default=list(range(DRAWS)))
    parser.add_argument("--blocks", type=int, help="the first so many blocks only; nothing is recorded")
    options = parser.parse_args(argv)
    model, tokenizer = smollm2()
    have = committed_table(RESULTS.stem) if RESULTS.exists() else []
    finished = {(row["recipe"], row["draw"]) for row in have}
    wanted = [("dense", 0)] + [(name, draw) for draw in options.draws for name in options.recipes]
    for name, draw in wanted:
        if (name in UNDRAWN and draw) or (options.blocks is None and (name, str(draw)) in finished):
            continue
        if name == "dense":
            row = {"recipe": name, "draw": draw, "bits_per_weight": 32.0}
            row["perplexity"] = round(perplexity(model, held_out(tokenizer)), 3)
            row |= {"method_seconds": 0.0, "total_seconds": 0.0}
        else:
            row = run(model, tokenizer, name, draw, options.blocks)
        print(row, flush=True)
        if options.blocks is None:
            append([row | origin(seed=None)], RESULTS)


if __name__ == "__main__":
    main()
