"""Instruction distillation: more kinds or more pairs of each, more phrasings, and which tokens are learned.

    python experiments/instruction_distillation.py             # eight minutes on one core
    python experiments/instruction_distillation.py --seeds 0   # what is there is not run again

A teacher, a decoder of two blocks, 64 wide, learned from right responses to all 48 kinds of instructions in all 16
phrasings. Students (two blocks, 48 wide) see what it writes: pairs of instruction and response, until the budget of
tokens is spent, wrong responses included, truncated ones and repeated instructions left out. All take the same number
of steps. Each seed draws pairs and starts anew; the teacher is one.

kinds: 8, 16, 24 or 40 kinds of instructions, in 12 phrasings. Of 8 more kinds no student sees any; their operations
and formats occur in all the others. phrasings: 40 kinds, each in 1, 2 or 12 of the phrasings. whole: instructions
are learned, too. Right responses, of 500 new questions each: ``seen`` are the 8 kinds that all students know, in
phrasings that they know; ``kinds`` the 8 that none does; ``wording`` the kinds of ``seen`` in the 4 phrasings that
none knows.

Each network is a row of ``mlcomp/data/tables/instruction_distillation.csv``.
"""

import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks, which is no part of the installed package

from benchmarks.record import run_parts
from mlcomp.data.checkable_instructions import (
    FORMATS,
    OPERATIONS,
    PHRASINGS,
    RESPONSE,
    STOP,
    VOCABULARY,
    WORDS,
    CheckableInstructions,
    checkable_instructions,
)
from mlcomp.data.committed_table import TABLES
from mlcomp.distill import instruction_rows, response_loss, sift_pairs
from mlcomp.generate import sample_outputs
from mlcomp.models import token_decoder
from mlcomp.train import train

RESULTS = TABLES / "instruction_distillation.csv"
TOKENS, STEPS, BATCH, LR = 40_000, 560, 64, 4e-3
# Kind number i·8 + o is operation o in format (o + i) mod 6: any 8 in a row hold every operation, and every format.
ORDERED = [(name, list(FORMATS)[(place + i) % 6]) for i in range(6) for place, name in enumerate(OPERATIONS)]
UNSEEN, KNOWN = ORDERED[:8], ORDERED[8:]
# Of these the first holds the first words only, the first two all words.
TRAINED = [PHRASINGS[i] for i in (0, 15, 6, 9, 1, 14, 2, 13, 4, 11, 8, 7)]
OTHER = [p for p in PHRASINGS if p not in TRAINED]
Row = dict[str, object]


@cache
def teacher() -> nn.Module:
    """Return the teacher, which learned from right responses."""
    pairs = checkable_instructions(6000, seed=1)
    rows = instruction_rows(pairs.prompts.tolist(), pairs.responses(), end=STOP)
    net = token_decoder(VOCABULARY, 64, 2, seed=0)
    train(net, rows.inputs, rows.labels, epochs=12, lr=LR, loss=response_loss, progress=False)
    return net


def said(net: nn.Module, prompts: Tensor) -> Tensor:
    """Return what a network answers."""
    return sample_outputs(net, prompts, length=RESPONSE, end=STOP, temperature=0)


def text(tokens: list[int]) -> str:
    """Return tokens as words."""
    return " ".join(WORDS[token] for token in tokens)


def responses(asked: CheckableInstructions) -> tuple[list[list[int]], list[list[int]]]:
    """Return instructions and the teacher's responses to them, in tokens, as many as the budget allows."""
    outputs = said(teacher(), asked.prompts).tolist()
    prompts = asked.prompts.tolist()
    ended = [STOP in row for row in outputs]
    cut = [row[: row.index(STOP) + 1] if STOP in row else row for row in outputs]
    pairs = [(text(x), text(y)) for x, y in zip(prompts, cut, strict=True)]
    kept: tuple[list[list[int]], list[list[int]]] = ([], [])
    left = TOKENS
    for x, y, reason in zip(prompts, cut, sift_pairs(pairs, ended=ended).reasons, strict=True):
        if not reason and len(x) + len(y) <= left:
            kept[0].append(x)
            kept[1].append(y)
            left -= len(x) + len(y)
    if left > 20:
        raise ValueError(f"{left} tokens of the budget are left: draw more pairs")
    return kept


def measured(net: nn.Module, phrasings: list[tuple[int, ...]], *, seed: int) -> Row:
    """Return the shares of right responses to questions of the three sorts."""
    sorts = {"seen": (KNOWN[:8], phrasings), "kinds": (UNSEEN, phrasings), "wording": (KNOWN[:8], OTHER)}
    found: Row = {}
    for place, (name, (kinds, wordings)) in enumerate(sorts.items()):
        asked = checkable_instructions(500, kinds=kinds, phrasings=wordings, seed=1000 + 10 * seed + place)
        found[name] = round(float(asked.right(said(net, asked.prompts)).double().mean()), 4)
    return found


def student(kinds: int, phrasings: int, *, whole: bool, seed: int) -> Row:
    """Train a student; return what it learned from and what it can."""
    asked = checkable_instructions(3600, kinds=KNOWN[:kinds], phrasings=TRAINED[:phrasings], seed=100 + seed)
    instructions, answers = responses(asked)
    rows = instruction_rows(instructions, answers, end=STOP, learn_instructions=whole)
    order = torch.Generator().manual_seed(seed)
    passes = -(-STEPS * BATCH // len(rows.inputs))
    taken = torch.cat([torch.randperm(len(rows.inputs), generator=order) for _ in range(passes)])[: STEPS * BATCH]
    net = token_decoder(VOCABULARY, 48, 2, seed=seed)
    run = {"lr": LR, "batch_size": BATCH, "seed": seed, "loss": response_loss, "progress": False}
    train(net, rows.inputs[taken], rows.labels[taken], epochs=1, **run)
    about = {"n_kinds": kinds, "phrasings": phrasings, "learned": "whole" if whole else "response"}
    return about | {"pairs": len(answers)} | measured(net, TRAINED[:phrasings], seed=seed)


def teacher_part(seed: int) -> Iterator[Row]:
    """Yield what the teacher can."""
    about = {"n_kinds": 48, "phrasings": 16, "learned": "response", "pairs": 6000}
    yield about | measured(teacher(), TRAINED, seed=seed)


def students_part(seed: int) -> Iterator[Row]:
    """Yield the students of a seed."""
    for kinds in (8, 16, 24, 40):
        yield student(kinds, 12, whole=False, seed=seed)
    for phrasings in (1, 2):
        yield student(40, phrasings, whole=False, seed=seed)
    for kinds in (8, 40):
        yield student(kinds, 12, whole=True, seed=seed)


if __name__ == "__main__":
    torch.set_num_threads(1)
    seeds = {"teacher": range(3), "students": range(3)}
    run_parts({"teacher": teacher_part, "students": students_part}, seeds, RESULTS, about=__doc__)
