"""Prune SmolLM2 by LLM-Pruner's strategies, and recover it with LoRA; write the perplexity of each.

    python experiments/llm_pruner_smollm2.py               # all; about twenty minutes on one core
    python experiments/llm_pruner_smollm2.py --part strategies --seeds 0    # what is there is not run again

In layers 3 to 28 of 30 a fifth of the MLP's channels and one of three key-value heads with its query heads go: of
134.5 million parameters 113.1 stay. A seed draws the ten sequences of 64 tokens by which importance is measured.

strategies: each expansion, order and aggregation; random channels; least L2 norm. Perplexity is measured on 4096
    tokens of other pages of Python's reference.
sequence losses: the same with the loss of a sequence, the sum over its tokens, in the place of their mean: the
    quadratic term then has the size that it has in the expansion.
recovery, of random, of dense: corrections of rank 8 beside all linear layers, 20 steps of two sequences of 128 tokens
    of the reference, of the model pruned by "vector, first, sum", of one pruned at random, and of the whole model:
    what this one gains is the kind of text. Perplexity, too, on 2048 tokens of source code, which nobody trained on.

Perplexity is computed in bfloat16, importance and training in float32. Each model is a row of
``mlcomp/data/tables/llm_pruner_smollm2.csv``.
"""

import argparse
import inspect
import sys
from functools import cache, partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks, which is no part of the installed package

from benchmarks.record import run_parts
from experiments.whole_model import linear_layers
from mlcomp.data import python_reference, token_batches
from mlcomp.data.committed_table import TABLES
from mlcomp.layerwise.fit import copy_model
from mlcomp.metrics import perplexity
from mlcomp.models import smollm2
from mlcomp.prune import dependency_groups, group_weights, least_channels, remove_channels, structure_importance
from mlcomp.prune.structured.group_importance import AGGREGATIONS, next_token_loss
from mlcomp.train import add_lora, train

RESULTS = TABLES / "llm_pruner_smollm2.csv"
SEEDS = {
    "strategies": range(3),
    "sequence losses": range(3),
    "recovery": range(1),
    "recovery of random": range(1),
    "recovery of dense": range(1),
}
SHARE, FIRST, LAST = 0.2, 3, 28
EXAMPLES, LENGTH = 10, 64
STEPS, MEASURED, RATE = 20, (10, 20), 1e-3
STRATEGIES = {
    ("vector", "first"): ("sum", "product", "max", "last"),
    ("element", "first"): ("sum", "product", "max", "last"),
    ("element", "second"): ("sum",),
    ("element", "both"): ("sum",),
}


@cache
def setting():
    """Return the model, the groups that lose channels, and the texts."""
    model, tokenizer = smollm2()
    middle = tuple(f"model.layers.{n}." for n in range(FIRST, LAST + 1))
    found = dependency_groups(model, torch.arange(8)[None])
    groups = [g for g in found if g.members[0].name.startswith(middle)]
    pages = python_reference("calibration")
    texts = {
        "examples": token_batches(tokenizer, pages, length=LENGTH, count=800, batch_size=1),
        "recovery": token_batches(tokenizer, pages, length=128, count=400, batch_size=1),
        "reference": token_batches(tokenizer, python_reference("held_out"), length=256, count=16, batch_size=2),
        "code": token_batches(tokenizer, inspect.getsource(argparse), length=256, count=8, batch_size=2),
    }
    return model, groups, texts


def drawn(batches, count, seed):
    """Return some of the batches, by the seed."""
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(seed))
    return [batches[i] for i in order[:count].tolist()]


def random_scores(groups, seed):
    """Return a random score for each channel."""
    generator = torch.Generator().manual_seed(seed)
    return {g: torch.rand(g.channels, generator=generator) for g in groups}


def norms(model, groups):
    """Return the L2 norm of all weights of each channel."""
    return {g: torch.cat(list(group_weights(model, g).values()), 1).norm(dim=1) for g in groups}


def pruned(scores):
    """Return the model without the least of each group."""
    return remove_channels(setting()[0], least_channels(scores, share=SHARE))


def measured(model, text):
    """Return the perplexity on a text."""
    return round(perplexity(copy_model(model).to(torch.bfloat16), setting()[2][text]), 3)


def row(method, model, steps=0, *, code=False):
    """Return what is written about a model."""
    size = sum(p.numel() for name, p in model.named_parameters() if "lora_" not in name)
    found = {"method": method, "steps": steps, "parameters": size, "reference": measured(model, "reference")}
    return found | {"code": measured(model, "code") if code else ""}


def strategies(seed):
    """Yield a row for each strategy, and those without a draw once."""
    model, groups, texts = setting()
    if seed == 0:
        yield row("dense", model, code=True)
        yield row("magnitude", pruned(norms(model, groups)))
    yield row("random", pruned(random_scores(groups, seed)))
    examples = drawn(texts["examples"], EXAMPLES, seed)
    for (expansion, order), aggregations in STRATEGIES.items():
        found = structure_importance(model, examples, groups, expansion=expansion, order=order)
        for name in aggregations:
            scores = {g: AGGREGATIONS[name](v) for g, v in found.items()}
            yield row(f"{expansion}, {order}, {name}", pruned(scores))


def sequence_loss(output, tokens):
    """Return the negative logarithm of the probability of the sequences, per sequence."""
    return next_token_loss(output, tokens) * (tokens.shape[1] - 1)


def sequence_losses(seed):
    """Yield a row for each expansion to the second order."""
    model, groups, texts = setting()
    examples = drawn(texts["examples"], EXAMPLES, seed)
    for expansion in ("vector", "element"):
        found = structure_importance(model, examples, groups, expansion=expansion, order="both", loss=sequence_loss)
        for name in ("sum", "product"):
            scores = {g: AGGREGATIONS[name](v) for g, v in found.items()}
            yield row(f"{expansion}, both, {name}", pruned(scores))


def recovery(method, seed):
    """Yield rows before, while and after the corrections of one model are trained."""
    model, groups, texts = setting()
    if method == "dense":
        small = copy_model(model)
    elif method == "random":
        small = pruned(random_scores(groups, seed))
    else:
        found = structure_importance(model, drawn(texts["examples"], EXAMPLES, seed), groups)
        small = pruned({g: v.sum(0) for g, v in found.items()})
    yield row(method, small, code=True)
    yield from recovered(method, small, torch.cat(drawn(texts["recovery"], 2 * STEPS, 100 + seed)), seed)


def recovered(method, model, tokens, seed):
    """Return the rows of one training."""
    rows = []
    add_lora(model, linear_layers(model), rank=8, alpha=16, seed=seed)

    def look(step):
        if step in MEASURED:
            rows.append(row(method, model, step, code=step == STEPS))

    options = {"epochs": 1, "batch_size": 2, "lr": RATE, "seed": seed, "loss": next_token_loss}
    train(model, tokens, tokens, after_step=look, progress=False, **options)
    return rows


PARTS = {
    "strategies": strategies,
    "sequence losses": sequence_losses,
    "recovery": partial(recovery, "vector, first, sum"),
    "recovery of random": partial(recovery, "random"),
    "recovery of dense": partial(recovery, "dense"),
}


if __name__ == "__main__":
    run_parts(PARTS, SEEDS, RESULTS, about=__doc__)
