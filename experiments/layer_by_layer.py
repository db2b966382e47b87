"""Layer-by-layer distillation of a byte model: what feeds a block, what it has to say, and the whole model as rival.

    python experiments/layer_by_layer.py                # all weight bits and seeds; about five minutes on two cores
    python experiments/layer_by_layer.py --part "3 bits"   # what is there already is not run again

The model of width 48, weights of all blocks in groups of 16, inputs in 8 bits a token. Calibration: 16 batches of
8 sequences of 128 bytes, without labels. Each block makes 40 steps of Adam. The rival trains all blocks at once to
the teacher's distribution of the next byte, for 40 steps, so that each block makes as many. Every way has the same
grid of learning rates, and takes the one with the least bits per byte on a validation text, for each seed. Measured
is another text, on which nothing was chosen. The part "3 bits, 1e-3" has a rate between, for one seed: how much the
choice of the rate matters. Rows of ``mlcomp/data/tables/layer_by_layer.csv``: bits per byte, and
CPU seconds of the run with the chosen rate.
"""

import math
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks, which is no part of the installed package

from benchmarks.record import run_parts, timed
from mlcomp.data import reference_bytes
from mlcomp.data.committed_table import TABLES
from mlcomp.distill import layer_by_layer, train_student
from mlcomp.models import byte_lm
from mlcomp.modes import evaluating
from mlcomp.quant import GroupWise, finish_group_wise, prepare_group_wise

RESULTS = TABLES / "layer_by_layer.csv"
BITS, SEEDS, RATES = {"4 bits": 4, "3 bits": 3, "2 bits": 2}, (0, 1, 2), (5e-4, 2e-3)
BLOCKS = [f"blocks.{i}" for i in range(4)]
GROUP, STEPS, BATCH = 16, 40, 8
WAYS = {
    "teacher's inputs": {"inputs": "teacher"},
    "student's inputs, block's targets": {"inputs": "student", "targets": "student"},
    "student's inputs": {"inputs": "student"},
}


def sequences(part: int) -> Tensor:
    """Return 128 sequences of 128 bytes: part 0 for calibration, 1 for the choice of the rate, 2 for the results."""
    return reference_bytes(3 * 2**14)[part * 2**14 : (part + 1) * 2**14].view(128, 128)


def bits_per_byte(model: nn.Module, tokens: Tensor) -> float:
    """Return the mean surprise of each byte but the first of a sequence."""
    with evaluating(model):
        logits = torch.cat([model(part)[:, :-1] for part in tokens.split(32)])
    return float(F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())) / math.log(2)


def whole(teacher: nn.Module, tokens: Tensor, bits: int, lr: float, seed: int) -> GroupWise:
    """Return the model whose blocks were trained together, to the teacher's distributions."""
    layers = [f"{block}.{layer}" for block in BLOCKS for layer in ("qkv", "out", "up", "down")]
    student = prepare_group_wise(teacher, weight_bits=bits, group_size=GROUP, layers=layers)
    for part in (student.embedding, student.norm):  # as in the other ways, only blocks are trained
        part.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.cat([tokens[torch.randperm(len(tokens), generator=generator)] for _ in range(3)])[: STEPS * BATCH]
    options = {"temperature": 1.0, "epochs": 1, "lr": lr, "batch_size": BATCH, "seed": seed, "progress": False}
    return finish_group_wise(train_student(student, teacher, drawn, **options).model)


def rows(bits: int, seed: int, rates: tuple[float, ...] = RATES) -> Iterator[dict[str, object]]:
    """Yield a row for each way of one number of bits."""
    model, (calibration, validation, held_out) = byte_lm(48), [sequences(part) for part in range(3)]
    options = {"weight_bits": bits, "group_size": GROUP, "seed": seed}
    by_block = partial(layer_by_layer, model, list(calibration.split(BATCH)), BLOCKS, **options)

    def row(way: str, lr: float, net: nn.Module, seconds: float) -> dict[str, object]:
        measured = {"bits_per_byte": round(bits_per_byte(net, held_out), 4)}
        return {"way": way, "lr": lr, **measured, "cpu_seconds": round(seconds, 1)}

    if seed == SEEDS[0] and rates == RATES:
        yield row("original", 0, model, 0)
        yield row("rounding", 0, by_block(steps=0).model, 0)
    runs = {way: partial(by_block, steps=STEPS, **how) for way, how in WAYS.items()}
    for way in (*runs, "whole model"):
        tried = []
        for lr in rates:
            run = partial(runs[way], lr=lr) if way in runs else partial(whole, model, calibration, bits, lr, seed)
            result, _, seconds = timed(run)
            net = result.model
            tried.append((bits_per_byte(net, validation), lr, net, seconds))
        _, lr, net, seconds = min(tried, key=lambda entry: entry[0])
        yield row(way, lr, net, seconds)


if __name__ == "__main__":
    parts = {part: partial(rows, bits) for part, bits in BITS.items()} | {
        "3 bits, 1e-3": partial(rows, 3, rates=(1e-3,))
    }
    run_parts(parts, dict.fromkeys(BITS, SEEDS) | {"3 bits, 1e-3": SEEDS[:1]}, RESULTS, about=__doc__)
