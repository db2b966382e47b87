"""In-context learning distillation: which parts of the loss teach a small network to read examples.

    python experiments/in_context_distillation.py             # ten minutes on one core
    python experiments/in_context_distillation.py --seeds 0   # what is there is not run again

The teacher has three blocks, 48 wide; students have three, 32 wide. All learn from the same number of sequences of
labelled symbols and of steps; those with text read as many texts beside them, in batches twice as large. Each seed
draws sequences, texts and starts anew. Accuracy, by the number of shots, is how often the likeliest label is the
symbol's own one, on new sequences; ``kl`` is how far the student's probabilities of the four labels are from the
exact rule's, and ``text_nll`` what a token of the text costs, both in nats.

hard, soft, both: α = 0, 1, 0.5; falling: α from 1 to 0 along the steps; + text: with the language-modelling term,
β = 1; text: only that. hard_twice: twice the steps, on labels alone, which costs more than the teacher does. Part
``short`` is of 376 steps and one seed, ``students`` of 752 and three.

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


def untaught(seed: int) -> Iterator[Row]:
    """Yield the exact rule, the teacher, and a student before it learns."""
    new = labelled_symbols(3000, seed=1000 + seed)
    rule = bayes_labels(new.tokens)
    yield {"method": "exact rule", **scores(rule.log(), rule, new.own, new.shots), "text_nll": ""}
    yield {"method": "teacher", **measured(in_context_teacher(), seed=seed)}
    yield {"method": "untrained", **measured(data(seed)[0], seed=seed)}


def students(names: tuple[str, ...], epochs: int, seed: int) -> Iterator[Row]:
    """Yield students of some parts of the loss."""
    start, tokens, counted = data(seed)
    text = chain_text(SEQUENCES, 24, seed=100 + seed)
    run = {"epochs": epochs, "lr": LR, "batch_size": BATCH, "seed": seed, "progress": False}
    for name in names:
        labels, _, beside = name.partition(" + ")
        rows, counts, also = tokens, counted, {}
        if name == "text":
            rows, counts = text, (torch.arange(24) > 0).expand_as(text)
        elif beside:
            also = {"text": text, "batch_size": 2 * BATCH}
        elif name == "hard_twice":
            labels, also = "hard", {"epochs": 2 * epochs}
        alpha = ALPHAS.get(labels, 0.5)
        net = in_context_student(start, in_context_teacher(), rows, counts, alpha=alpha, **(run | also)).model
        yield {"method": name, **measured(net, seed=seed)}


SHORT = ("hard", "soft", "both", "falling", "hard + text", "both + text", "text", "hard_twice")
PARTS = {
    "untaught": untaught,
    "short": partial(students, SHORT, EPOCHS),
    "students": partial(students, ("hard", "soft", "both"), 2 * EPOCHS),
    "text": partial(students, ("both + text",), 2 * EPOCHS),
}
SEEDS = {"untaught": range(3), "short": range(1), "students": range(3), "text": range(1)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_parts(PARTS, SEEDS, RESULTS, about=__doc__)
