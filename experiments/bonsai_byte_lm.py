"""Bonsai and what it must beat on the course's byte-level language model of width 64.

    python experiments/bonsai_byte_lm.py                     # all; four minutes on one core
    python experiments/bonsai_byte_lm.py --part random       # or one_by_one, masks; what is there is not run again

80 modules, 4 × 4 heads and 4 × 16 blocks of 16 hidden units, are scored on 16 windows of 128 bytes. one_by_one: by
the loss without each of them. masks: by regression on random submodels, in several ways. random: in random order.
Then 10, 20 and 30 % of the modules' parameters are cut out by utility per parameter, and the smaller models are
measured on 64 other windows. Nothing is trained afterwards.

Rows go to ``mlcomp/data/tables/bonsai_byte_lm.csv``: Spearman's rank correlation of the scores with the losses one by
one, evaluations of the utility, and bits a byte of the three models.
"""

import math
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks, which is no part of the installed package

from benchmarks.record import run_parts
from mlcomp.data import reference_bytes
from mlcomp.data.committed_table import TABLES
from mlcomp.models import byte_lm
from mlcomp.modes import evaluating
from mlcomp.prune import (
    attention_heads,
    bonsai,
    drawn_submodels,
    module_blocks,
    module_scores,
    module_utility,
    next_token_losses,
)
from mlcomp.prune.structured.bonsai import remove_smallest

RESULTS = TABLES / "bonsai_byte_lm.csv"
SPARSITIES = (0.1, 0.2, 0.3)
BLOCKS = 16
WINDOW, CALIBRATION, HELD_OUT = 128, 16, 64

Row = dict[str, object]


@cache
def setting() -> tuple:
    """Return model, modules, utility and the text to measure on."""
    model = byte_lm(64)
    text = reference_bytes(WINDOW * (CALIBRATION + HELD_OUT)).reshape(-1, WINDOW)
    heads = attention_heads(model, text[:1, :8])
    modules = module_blocks(model, text[:1, :8], heads | {f"blocks.{i}.down": BLOCKS for i in range(4)})
    utility = cache_by_mask(module_utility(model, modules, [text[:CALIBRATION]], next_token_losses))
    return model, modules, utility, text[CALIBRATION:]


def cache_by_mask(utility: Callable[[Tensor], float]) -> Callable[[Tensor], float]:
    """Return the utility with what was computed remembered."""
    known: dict[tuple, float] = {}

    def remembered(removed: Tensor) -> float:
        key = tuple(removed.tolist())
        if key not in known:
            known[key] = utility(removed)
        return known[key]

    return remembered


@cache
def one_by_one() -> Tensor:
    """Return what each module's removal costs."""
    _, modules, utility, _ = setting()
    rows = torch.eye(len(modules.sizes), dtype=torch.bool)
    whole = utility(torch.zeros(len(rows), dtype=torch.bool))
    return torch.tensor([whole - utility(row) for row in rows], dtype=torch.float64)


def spearman(a: Tensor, b: Tensor) -> float:
    """Return the correlation of the ranks, without ties."""
    ranks = torch.stack([x.argsort().argsort().double() for x in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def bits(removed: Tensor) -> float:
    """Return bits a byte of the model without these modules, cut out, on the held-out windows."""
    model, modules, _, text = setting()
    small = modules.remove(model, removed)
    with evaluating(small):
        return float(next_token_losses(small, text).mean()) / math.log(2)


def measured(method: str, evaluations: int, scores: Tensor, removals: list[Tensor]) -> Row:
    """Return the row of a method."""
    row: Row = {"method": method, "evaluations": evaluations, "spearman": f"{spearman(scores, one_by_one()):.4f}"}
    return row | {f"bits_{s:.0%}".rstrip("%"): f"{bits(r):.4f}" for s, r in zip(SPARSITIES, removals, strict=True)}


def by_scores(method: str, evaluations: int, scores: Tensor) -> Row:
    """Return the row of a method that scores once."""
    _, modules, _, _ = setting()
    none, layers = torch.zeros(len(scores), dtype=torch.bool), torch.tensor(modules.layers)
    order = scores / modules.sizes
    return measured(
        method, evaluations, scores, [remove_smallest(order, modules.sizes, none, s, layers) for s in SPARSITIES]
    )


def one_by_one_part(seed: int) -> Iterator[Row]:
    """Yield the rows of the losses one by one, and of nothing removed."""
    scores = one_by_one()
    none = torch.zeros(len(scores), dtype=torch.bool)
    yield measured("whole model", 0, scores, [none] * 3)
    yield by_scores("one by one", len(scores) + 1, scores)


def random_part(seed: int) -> Iterator[Row]:
    """Yield the row of a random order."""
    _, modules, _, _ = setting()
    order = torch.rand(len(modules.sizes), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    yield by_scores("random", 0, order * modules.sizes)


def masks_part(seed: int) -> Iterator[Row]:
    """Yield the rows of regressions on random submodels."""
    _, modules, utility, _ = setting()
    none = torch.zeros(len(modules.sizes), dtype=torch.bool)
    whole = utility(none)
    near, far = (drawn_submodels(~none, 200, share=s, seed=seed) for s in (0.1, 0.5))
    paired = torch.cat([near[:100], ~near[:100]])
    losses = {
        name: torch.tensor([whole - utility(r) for r in rows], dtype=torch.float64)
        for name, rows in (("near", near), ("far", far), ("paired", paired))
    }
    yield by_scores("100 submodels without 10 %", 101, module_scores(near[:100], losses["near"][:100]))
    yield by_scores("200 submodels without 10 %", 201, module_scores(near, losses["near"]))
    perplexity = (losses["near"] - whole).exp() - math.exp(-whole)
    yield by_scores("the same, by perplexity", 201, module_scores(near, perplexity))
    yield by_scores("100 without 10 %, 100 complements", 201, module_scores(paired, losses["paired"]))
    yield by_scores("200 submodels without 50 %", 201, module_scores(far, losses["far"]))
    found = bonsai(
        utility, modules.sizes, sparsity=SPARSITIES[-1], rounds=3, samples=100, layers=modules.layers, seed=seed
    )
    removals = [*(scores.isnan() for scores in found.scores[1:]), found.removed]
    yield measured("3 rounds of 100 submodels", found.evaluations, found.scores[0], removals)


PARTS = {"one_by_one": one_by_one_part, "random": random_part, "masks": masks_part}

if __name__ == "__main__":
    run_parts(PARTS, {"one_by_one": range(1), "random": range(10), "masks": range(3)}, RESULTS, about=__doc__)
