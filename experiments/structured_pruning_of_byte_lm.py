"""Heads, CoFi and Bonsai at equal size and equal compute, on the course's byte-level language model of width 48.

    python experiments/structured_pruning_of_byte_lm.py                # all; six minutes on one quiet core
    python experiments/structured_pruning_of_byte_lm.py --part half    # or fifth; what is there is not run again

CoFi is asked to remove half of the weights in the blocks' matrices, or four fifths. Where it ends is the size of all
others (to one hidden unit): heads and single hidden units by the importance of their masks, the same share of both
("importance") or by importance for each weight ("importance per weight"); heads and blocks of 16 hidden units by the
loss without each, by Bonsai, and in random order. All take the same CPU seconds in total: what a method leaves of
them is fine-tuning of the smaller model, which like CoFi's own training is distillation from the whole model (KL,
AdamW, learning rate 1e-3, batches of 8 × 128 bytes).

Rows go to ``mlcomp/data/tables/structured_pruning_of_byte_lm.csv``: weights left in the matrices, heads, hidden units
and dimensions of the stream; CPU seconds of method and fine-tuning, steps of the latter; bits a byte of held-out text
before and after it. CoFi's steps (``cofi_steps``) are thinned to 50 rows of the first seed.
"""

import math
import sys
import time
from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks, which is no part of the installed package

from benchmarks.record import append, origin, run_parts
from mlcomp.data import python_reference, reference_bytes
from mlcomp.data.committed_table import TABLES
from mlcomp.distill import cofi, train_student
from mlcomp.models import byte_lm
from mlcomp.modes import evaluating
from mlcomp.prune import (
    Gates,
    bonsai,
    gated_size,
    head_importance,
    head_loss_changes,
    module_blocks,
    module_utility,
    next_token_losses,
    open_gates,
    remove_gated,
    residual_stream,
)

RESULTS = TABLES / "structured_pruning_of_byte_lm.csv"
STEPS = TABLES / "structured_pruning_of_byte_lm_steps.csv"
TARGETS = {"half": 0.5, "fifth": 0.8}
WIDTH, WINDOW, BATCH, UNITS_A_BLOCK = 48, 128, 8, 16
COFI_STEPS, SECONDS = 200, 16.0

Row = dict[str, object]


@cache
def whole() -> nn.Module:
    """Return the model before pruning."""
    return byte_lm(WIDTH)


@cache
def windows() -> Tensor:
    """Return the text to learn from, cut into windows."""
    text = torch.tensor(list(python_reference("calibration").encode()), dtype=torch.int64)
    return text[: len(text) // WINDOW * WINDOW].view(-1, WINDOW)


def drawn(count: int, seed: int) -> Tensor:
    """Return so many windows in an order drawn by the seed, again from the start where they end."""
    order = torch.randperm(len(windows()), generator=torch.Generator().manual_seed(seed))
    return windows()[order.repeat(math.ceil(count / len(order)))[:count]]


def bits(net: nn.Module) -> float:
    """Return bits a byte of held-out text."""
    with evaluating(net):
        losses = [next_token_losses(net, part) for part in reference_bytes(128 * WINDOW).view(-1, WINDOW).split(64)]
    return round(float(torch.cat(losses).mean()) / math.log(2), 4)


def finetuned(net: nn.Module, seconds: float, seed: int) -> tuple[nn.Module, int]:
    """Return ``net`` trained for so many CPU seconds, and the number of steps."""
    options = {"temperature": 1.0, "epochs": 1, "lr": 1e-3, "batch_size": BATCH, "seed": seed, "progress": False}
    began = time.process_time()
    train_student(net, whole(), drawn(8 * BATCH, seed), **options)
    spent = time.process_time() - began
    steps = max(2, int((seconds - spent) / (spent / 8)))
    return train_student(net, whole(), drawn(steps * BATCH, seed), **options).model, steps


def scores(method: str, seed: int) -> dict[str, Tensor]:
    """Return writer of a sublayer → (units,), what a unit is worth for each weight it has."""
    net, stream = whole(), residual_stream(whole(), windows()[:1])
    units = {s.writer: s.units.channels for s in stream.sublayers}
    cost = {s.writer: s.cost for s in stream.sublayers}
    blocks = {name: n if n < UNITS_A_BLOCK else n // UNITS_A_BLOCK for name, n in units.items()}
    if method.startswith("importance"):
        found = head_importance(net, drawn(64, seed).split(16), units, next_token_losses, normalize=False)
        return {name: score / cost[name] for name, score in found.items()} if "weight" in method else ranks(found)
    if method == "one by one":
        changes = head_loss_changes(net, drawn(32, seed).split(16), blocks, next_token_losses)
        found = {name: change.mean(1) for name, change in changes.items()}
    elif method == "Bonsai":
        modules = module_blocks(net, windows()[:1], blocks)
        utility = module_utility(net, modules, [drawn(16, seed)], next_token_losses)
        done = bonsai(utility, modules.sizes, sparsity=0.5, rounds=2, samples=100, seed=seed)
        values = done.scores[-1].nan_to_num(nan=-math.inf)
        found = dict(zip(blocks, values.split(list(blocks.values())), strict=True))
    else:
        generator = torch.Generator().manual_seed(seed)
        values = torch.rand(sum(blocks.values()), generator=generator)
        parts = dict(zip(blocks, values.split(list(blocks.values())), strict=True))
        return {name: part.repeat_interleave(units[name] // blocks[name]) for name, part in parts.items()}
    each = {name: units[name] // blocks[name] for name in units}
    return {name: (s / each[name] / cost[name]).repeat_interleave(each[name]) for name, s in found.items()}


def ranks(scored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the place of each unit among all of its kind, heads or hidden units, as a share of them."""
    found = {}
    for kind in ("out", "down"):
        names = [name for name in scored if name.endswith(kind)]
        values = torch.cat([scored[name] for name in names])
        places = values.argsort().argsort().double() / len(values)
        found |= dict(zip(names, places.split([len(scored[name]) for name in names]), strict=True))
    return found


def chosen(scored: Mapping[str, Tensor], size: int) -> Gates:
    """Return gates that close the units of the least scores, as far as ``size`` weights are left."""
    stream = residual_stream(whole(), windows()[:1])
    gates, left = open_gates(stream), int(gated_size(stream, open_gates(stream)))
    order = [(float(v), i, j) for i, s in enumerate(stream.sublayers) for j, v in enumerate(scored[s.writer])]
    for _, i, j in sorted(order):
        weights = stream.sublayers[i].cost * WIDTH
        if left - weights >= size:  # what would be too much is passed over
            gates.units[i][j] = 0
            left -= weights
    return gates


def described(gates: Gates) -> Row:
    """Return what is left under gates."""
    stream = residual_stream(whole(), windows()[:1])
    parts = zip(stream.sublayers, gates.layers, gates.units, strict=True)
    left = {s.writer: int((layer * units > 0).sum()) for s, layer, units in parts}
    opened = gates.map(lambda z: (z > 0).float())
    return {
        "weights": int(gated_size(stream, opened)),
        "heads": " ".join(str(n) for name, n in left.items() if name.endswith("out")),
        "hidden": " ".join(str(n) for name, n in left.items() if name.endswith("down")),
        "dimensions": int(opened.dimensions.sum()),
    }


def row(method: str, gates: Gates, removed: nn.Module, spent: float, seed: int) -> Row:
    """Return the row of a method that took ``spent`` CPU seconds, after fine-tuning for the rest of them."""
    began = time.process_time()
    net, steps = finetuned(removed, SECONDS - spent, seed)
    done = {"method_seconds": round(spent, 1), "finetune_seconds": round(time.process_time() - began, 1)}
    return {"method": method, **described(gates), **done, "steps": steps, "before": bits(removed), "after": bits(net)}


def pruned(part: str, seed: int) -> Iterator[Row]:
    """Yield the rows of a target and seed: the whole model, CoFi, and the others at its size."""
    stream = residual_stream(whole(), windows()[:1])
    everything = open_gates(stream)
    finetuned(whole(), 0.0, seed)  # what torch does once is done
    zero = {"method_seconds": 0.0, "finetune_seconds": 0.0, "steps": 0}
    yield {"method": "whole", **described(everything), **zero, "before": bits(whole()), "after": bits(whole())}
    began = time.process_time()
    options = {"epochs": 1, "lr": 1e-3, "batch_size": BATCH, "seed": seed, "progress": False}
    found = cofi(whole(), drawn(COFI_STEPS * BATCH, seed), sparsity=TARGETS[part], **options)
    spent = time.process_time() - began
    if seed == 0:
        append([line | origin(seed=seed) for line in thinned(part, found.steps)], STEPS)
    yield row("CoFi", found.gates, found.removed, spent, seed)
    size = described(found.gates)["weights"]
    for method in ("importance", "importance per weight", "Bonsai", "one by one", "random"):
        began = time.process_time()
        gates = chosen(scores(method, seed), size)
        removed = remove_gated(whole(), stream, gates)
        yield row(method, gates, removed, time.process_time() - began, seed)


def thinned(part: str, steps: object) -> list[Row]:
    """Return every fourth of CoFi's steps as rows."""
    columns = ("sparsity", "target", "linear", "quadratic", "loss")
    rows = [
        {"part": part, "step": n + 1} | {c: round(getattr(steps, c)[n], 4) for c in columns}
        for n in range(COFI_STEPS)
    ]
    return rows[3::4]


if __name__ == "__main__":
    run_parts(
        {part: partial(pruned, part) for part in TARGETS}, dict.fromkeys(TARGETS, range(2)), RESULTS, about=__doc__
    )
