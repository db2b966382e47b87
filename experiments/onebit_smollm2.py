"""OneBit on SmolLM2: perplexity with one bit a weight, before and after a short training by the model that it was.

    python experiments/onebit_smollm2.py                 # all; about eight minutes on one quiet core
    python experiments/onebit_smollm2.py --runs OneBit
    python experiments/onebit_smollm2.py --steps 2       # to try it; not recorded

All 210 projections have one bit a weight; the embedding, which is the head, too, stays as it is, and norms are
trained. A step sees one sequence of 128 tokens of Python's reference. The loss is the divergence from the teacher
plus a tenth of the squared distances of the normalized states after the 30 blocks. The paper trains a model of 7
billion parameters for 50 epochs on 132 000 texts, on eight GPUs; 40 steps show how it begins, and no more.

Each measurement is a row of ``mlcomp/data/tables/onebit_smollm2.csv``, perplexity on other pages of the reference;
what is there already is not run again. Beside it: the model itself, and the frequencies of the tokens in the text
that is trained on, one added to each.
"""

import argparse
import math
import sys
import time
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks, which is no part of the installed package

from benchmarks.record import append, origin
from experiments.whole_model import linear_layers
from mlcomp.data import python_reference, token_batches
from mlcomp.data.committed_table import TABLES, committed_table
from mlcomp.distill import onebit_loss
from mlcomp.metrics import perplexity
from mlcomp.models import smollm2
from mlcomp.quant import prepare_onebit
from mlcomp.quant.aware_training import OneBitLinear
from mlcomp.train import train

RESULTS = TABLES / "onebit_smollm2.csv"
STEPS, PART, LENGTH, RATE, HIDDEN = 40, 10, 128, 2e-3, 0.1
RUNS = {"OneBit": True, "without norm": False}  # whether the layers normalize


class Pair(nn.Module):
    """The student, and a teacher that runs along and is none of its modules."""

    def __init__(self, student, teacher):
        super().__init__()
        self.student, self.teacher = student, (teacher,)

    def forward(self, tokens):
        """Return what both make of the tokens."""
        with torch.no_grad():
            taught = self.teacher[0](tokens, output_hidden_states=True)
        return self.student(tokens, output_hidden_states=True), taught


def teacher_loss(outputs, tokens):
    """Return the loss between student and teacher."""
    ours, theirs = outputs
    states = {"student_hidden": ours.hidden_states[1:], "teacher_hidden": theirs.hidden_states[1:]}
    return onebit_loss(ours.logits, theirs.logits, **states, hidden_weight=HIDDEN)


def changed(student, model):
    """Return the share of the weights whose sign is no longer the model's."""
    layers = {name: m for name, m in student.named_modules() if isinstance(m, OneBitLinear)}
    pairs = [(m.weight >= 0, model.get_submodule(name).weight >= 0) for name, m in layers.items()]
    return sum(int((a != b).sum()) for a, b in pairs) / sum(a.numel() for a, _ in pairs)


def run(model, texts, name, steps):
    """Train, measuring at the start and every PART steps."""
    student = prepare_onebit(model, linear_layers(model), norm=RUNS[name])
    student.get_input_embeddings().weight.requires_grad_(False)
    order = torch.randperm(len(texts["calibration"]), generator=torch.Generator().manual_seed(0))[: steps + 1]
    tokens, began = texts["calibration"][order], time.perf_counter()

    def measure(step):
        if step % PART == 0 or step == steps:
            row = {"run": name, "steps": step, "perplexity": f"{perplexity(student, texts['held_out']):.4g}"}
            row |= {"changed": f"{changed(student, model):.4f}", "seconds": round(time.perf_counter() - began, 1)}
            print(row, flush=True)
            if steps == STEPS:
                record(row)

    measure(0)
    # One sequence more than there are steps: train leaves out a last batch of one.
    options = {"lr": RATE, "batch_size": 1, "loss": teacher_loss, "after_step": measure, "progress": False}
    train(Pair(student, model), tokens, tokens, epochs=1, **options)


def record(row):
    """Append a row unless it is there."""
    have = committed_table(RESULTS.stem) if RESULTS.exists() else []
    if (row["run"], str(row["steps"])) not in {(r["run"], r["steps"]) for r in have}:
        append([row | origin(seed=0)], RESULTS)


def frequencies(texts, size):
    """Return the perplexity of the tokens' frequencies on the held-out text, the first of each sequence left out."""
    counts = torch.bincount(texts["calibration"].flatten(), minlength=size).double() + 1
    held_out = torch.cat(texts["held_out"])[:, 1:]
    return math.exp(-float((counts / counts.sum()).log()[held_out].mean()))


def main(argv=None):
    """Run what is asked for and not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--steps", type=int, default=STEPS)
    asked = parser.parse_args(argv)
    model, tokenizer = smollm2()
    calibration = token_batches(tokenizer, python_reference("calibration"), length=LENGTH, count=400)
    held_out = token_batches(tokenizer, python_reference("held_out"), length=LENGTH, count=8, batch_size=4)
    texts = {"calibration": torch.cat(calibration), "held_out": held_out}
    dense, unigram = perplexity(model, held_out), frequencies(texts, model.config.vocab_size)
    for name, value in (("SmolLM2", dense), ("frequency of tokens", unigram)):
        record({"run": name, "steps": 0, "perplexity": f"{value:.4g}", "changed": "0", "seconds": 0})
    have = committed_table(RESULTS.stem) if RESULTS.exists() else []
    finished = {row["run"] for row in have if row["steps"] == str(STEPS)}
    for name in asked.runs:
        if asked.steps != STEPS or name not in finished:
            run(model, texts, name, asked.steps)


if __name__ == "__main__":
    main()
