"""In-context learning distillation: which parts of the loss teach a small network to read examples.

    python experiments/in_context_distillation.py             # ten minutes on one core
    python experiments/in_context_distillation.py --seeds 0   # what is there is not run again

The teacher has three blocks, 48 wide; students have three, 32 wide. All learn from the same number of sequences of
labelled symbols and of steps; those with text read as many texts beside them, in batches twice as large. Each seed
draws sequences, texts and starts anew. Accuracy, by the number of shots, is how often the likeliest label is the
symbol's own one, on new sequences; ``kl`` is how far the student's probabilities of the four labels are from the
exact rule's, and ``text_nll`` what a token of the text costs, both in nats.

untrained; text: only that. hard, soft, both (α = 0, 1, 0.5); falling: α from 1 to 0 along the steps; + text: with the
language-modelling term, β = 1. hard_twice: twice the steps, on labels alone, which costs more than the teacher does.
long: four times the steps, one seed.

Each network is a row of ``mlcomp/data/tables/in_context_distillation.csv``.
"""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks, which is no part of the installed package

from benchmarks.record import run_parts
from mlcomp.data import labelled_symbols
from mlcomp.data.committed_table import TABLES
from mlcomp.data.labelled_symbols import SYMBOLS, VOCABULARY, bayes_labels, by_shots, chain_text
from mlcomp.distill import in_context_student
from mlcomp.models import in_context_teacher, token_decoder

RESULTS = TABLES / "in_context_distillation.csv"
WIDTH, LAYERS = 32, 3
SEQUENCES, EPOCHS, BATCH, LR = 6000, 4, 64, 4e-3
MOST = 4
Row = dict[str, object]
ALPHAS = {"hard": 0.0, "soft": 1.0, "both": 0.5, "falling": lambda progress: 1 - progress}


def measured(net: nn.Module, *, seed: int) -> Row:
    """Return the accuracies by the number of shots, the distance from the exact rule, and the loss on text."""
    new, text = labelled_symbols(3000, seed=1000 + seed), chain_text(1000, 24, seed=1000 + seed)
    rule = bayes_labels(new.tokens)
    with torch.no_grad():
        logits = net(new.tokens[:, :-1])[:, 0::2].double()
        nll = F.cross_entropy(net(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())
    return scores(logits[..., SYMBOLS:].log_softmax(2), rule, new.own, new.shots) | {"text_nll": round(float(nll), 4)}


def scores(log_p: Tensor, rule: Tensor, own: Tensor, shots: Tensor) -> Row:
    """Return the accuracies of what is said of the labels, and its distance from the exact rule."""
    right = by_shots((log_p.argmax(2) == own).double(), shots, most=MOST)
    kl = (rule * (rule.log() - log_p)).sum(2).mean()
    return {f"shots_{k}": round(float(x), 4) for k, x in enumerate(right)} | {"kl": round(float(kl), 4)}


def data(seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a student to start from, sequences, and which of their tokens are labels."""
    tokens = labelled_symbols(SEQUENCES, seed=100 + seed).tokens
    return token_decoder(VOCABULARY, WIDTH, LAYERS, seed=seed), tokens, (torch.arange(24) % 2 == 1).expand_as(tokens)


def students(seed: int) -> Iterator[Row]:
    """Yield the teacher, the exact rule, and the students of a seed."""
    new = labelled_symbols(3000, seed=1000 + seed)
    rule = bayes_labels(new.tokens)
    yield {"method": "exact rule", **scores(rule.log(), rule, new.own, new.shots), "text_nll": ""}
    yield {"method": "teacher", **measured(in_context_teacher(), seed=seed)}
    start, tokens, counted = data(seed)
    yield {"method": "untrained", **measured(start, seed=seed)}
    text = chain_text(SEQUENCES, 24, seed=100 + seed)
    everything = (torch.arange(24) > 0).expand_as(text)
    run = {"epochs": EPOCHS, "lr": LR, "batch_size": BATCH, "seed": seed, "progress": False}
    made = partial(in_context_student, start, in_context_teacher())
    for name, alpha in ALPHAS.items():
        yield {"method": name, **measured(made(tokens, counted, alpha=alpha, **run).model, seed=seed)}
    for name in ("hard", "both"):
        net = made(tokens, counted, alpha=ALPHAS[name], text=text, **(run | {"batch_size": 2 * BATCH})).model
        yield {"method": f"{name} + text", **measured(net, seed=seed)}
    yield {"method": "text", **measured(made(text, everything, alpha=0.5, **run).model, seed=seed)}
    twice = made(tokens, counted, alpha=0.0, **(run | {"epochs": 2 * EPOCHS})).model
    yield {"method": "hard_twice", **measured(twice, seed=seed)}


def long(seed: int) -> Iterator[Row]:
    """Yield students of hard and of soft labels that took four times the steps."""
    run = {"epochs": 4 * EPOCHS, "lr": LR, "batch_size": BATCH, "seed": seed, "progress": False}
    start, tokens, counted = data(seed)
    for name in ("hard", "soft"):
        net = in_context_student(start, in_context_teacher(), tokens, counted, alpha=ALPHAS[name], **run).model
        yield {"method": f"{name}, long", **measured(net, seed=seed)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    seeds = {"students": range(3), "long": range(1)}
    run_parts({"students": students, "long": long}, seeds, RESULTS, about=__doc__)
