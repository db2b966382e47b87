"""Fine-tune SmolLM2 with LoRA on a base in 4 bits and on the dense base; write perplexity after some steps.

    python experiments/qlora_smollm2.py                    # all bases and seeds; about ten minutes on two cores
    python experiments/qlora_smollm2.py --bases nf4 --seeds 0
    python experiments/qlora_smollm2.py --steps 2          # to try it; not recorded

Corrections of rank 8 beside all 210 linear layers, AdamW, two sequences of 128 tokens of Python's reference a step.
The control is the same training on the dense base: what it gains, too, is the kind of text and not the repair of the
4 bits. Perplexity is measured on other pages of the reference, and on source code, which nobody trained on. A run of
a base and a seed is some rows of ``mlcomp/data/tables/qlora_smollm2.csv``; what is there already is not run again.

The model's weights lie on a 4-bit grid with blocks of 32 already (Q4_1), so that NF4 in blocks of 64 costs more here
than on weights as they were trained.
"""

import argparse
import inspect
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks, which is no part of the installed package

from benchmarks.record import append, origin
from experiments.whole_model import linear_layers
from mlcomp.data import python_reference, token_batches
from mlcomp.data.committed_table import TABLES, committed_table
from mlcomp.layerwise.fit import copy_model
from mlcomp.metrics import perplexity
from mlcomp.models import smollm2
from mlcomp.quant import qlora
from mlcomp.train import add_lora, train

RESULTS = TABLES / "qlora_smollm2.csv"
RANK, ALPHA, RATE, STEPS, LENGTH, BATCH = 8, 16, 2e-3, 20, 128, 2
MEASURED = (0, 1, 5, 10, 20)
HELD_OUT = {"length": 128, "count": 8, "batch_size": 4}


def prepared(model, base, seed):
    """Return a copy of the model with corrections, on one of the bases."""
    if base == "dense":
        return add_lora(copy_model(model), linear_layers(model), rank=RANK, alpha=ALPHA, seed=seed)
    return qlora(model, rank=RANK, alpha=ALPHA, seed=seed, data_type=base)


def next_token_loss(outputs, tokens):
    """Return the mean cross-entropy [nats] of each token but the first."""
    return F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())


def run(model, texts, base, seed, steps):
    """Yield a row for each number of steps after which perplexity is measured."""
    tokens = torch.cat(texts["calibration"])
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))[: steps * BATCH]
    student = prepared(model, base, seed)
    rows, began = [], time.perf_counter()

    def measure(step):
        if step in MEASURED or step == steps:
            row = {"base": base, "steps": step, "reference": round(perplexity(student, texts["held_out"]), 3)}
            row |= {"code": round(perplexity(student, texts["code"]), 3)}
            rows.append(row | {"seconds": round(time.perf_counter() - began, 1)})
            print(seed, rows[-1], flush=True)

    measure(0)
    options = {"epochs": 1, "batch_size": BATCH, "lr": RATE, "seed": seed, "loss": next_token_loss}
    train(student, tokens[order], tokens[order], after_step=measure, progress=False, **options)
    return rows


def main(argv=None):
    """Run what is asked for and not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", nargs="+", choices=("dense", "nf4", "int"), default=["dense", "nf4", "int"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS)
    asked = parser.parse_args(argv)
    model, tokenizer = smollm2()
    texts = {
        "calibration": token_batches(tokenizer, python_reference("calibration"), length=LENGTH, count=200),
        "held_out": token_batches(tokenizer, python_reference("held_out"), **HELD_OUT),
        "code": token_batches(tokenizer, inspect.getsource(argparse), **HELD_OUT),
    }
    have = committed_table(RESULTS.stem) if RESULTS.exists() else []
    finished = {(row["base"], row["seed"]) for row in have}
    for seed in asked.seeds:
        for base in asked.bases:
            if asked.steps != STEPS or (base, str(seed)) not in finished:
                rows = run(model, texts, base, seed, asked.steps)
                if asked.steps == STEPS:
                    append([row | origin(seed=seed) for row in rows], RESULTS)


if __name__ == "__main__":
    main()
