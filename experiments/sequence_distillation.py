"""Word- and sequence-level distillation on number words, a task with up to 128 right answers to a question.

    python experiments/sequence_distillation.py                # all; about ten minutes on one core
    python experiments/sequence_distillation.py --seeds 0      # what is there already is not run again

Teacher: a causal transformer of width 64 with two blocks, trained on 6016 pairs for ten epochs. Students: width 16,
one block, on the same pairs in batches of 64, 376 and 1128 steps. By references (NLL); by the teacher's probabilities
word by word; by its beam search's outputs (beam 5); by both references and outputs, half and half. As controls the
teacher's outputs drawn at random instead of searched, and the truly likeliest translations, which no teacher knows.
In "both in each step" a batch holds 64 references and 64 outputs, twice the work; beside it NLL with batches of 128.

Each network is a row of ``mlcomp/data/tables/sequence_distillation.csv``, from 300 other numbers: share of right
translations by greedy decoding and by a beam of 5, mean probability of the beam's best, share of these that are the
truly likeliest translation, and the mean −log p of a reference's token.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks, which is no part of the installed package

from benchmarks.record import run_parts
from mlcomp.data import NumberWords, number_words
from mlcomp.data.committed_table import TABLES
from mlcomp.distill import keep_layers, sequence_student, teacher_outputs
from mlcomp.generate import output_log_probability, sample_outputs, search_outputs
from mlcomp.generate.outputs import output_mask
from mlcomp.models import byte_lm

RESULTS = TABLES / "sequence_distillation.csv"
SEEDS = {"number words": range(4)}
PAIRS, HELD_OUT, BATCH, BEAM = 6016, 300, 64, 5  # 6016 = 94 · 64 = 47 · 128

Row = dict[str, object]


def network(width: int, blocks: int, seed: int) -> nn.Module:
    """Return an untrained byte-level model of some blocks: its 256 tokens are more than the task has words."""
    return keep_layers(byte_lm(width, pretrained=False, seed=seed), "blocks", range(blocks))


def measured(net: nn.Module, data: NumberWords) -> Row:
    """Return the columns of a network."""
    length = data.references.shape[1]
    greedy, best = (search_outputs(net, data.prompts, beam=b, length=length, end=data.end) for b in (1, BEAM))
    likeliest = (best.tokens[:, 0] == data.likeliest()).all(1)
    log_p = output_log_probability(net, data.prompts, data.references, end=data.end)
    return {
        "greedy": share(data.right(greedy.tokens[:, 0])),
        "beam": share(data.right(best.tokens[:, 0])),
        "mode_probability": round(float(best.log_probability[:, 0].exp().mean()), 5),
        "likeliest": share(likeliest),
        "nll": round(-float(log_p.sum() / output_mask(data.references, end=data.end).sum()), 4),
    }


def share(yes: Tensor) -> float:
    """Return the share of True."""
    return round(float(yes.double().mean()), 5)


def rows(seed: int) -> Iterator[Row]:
    """Yield the rows of a seed."""
    data = number_words(PAIRS, seed=2 * seed)
    held_out = number_words(HELD_OUT, seed=2 * seed + 1, leave_out=data.numbers.tolist())
    length, run = data.references.shape[1], {"end": data.end, "seed": seed, "progress": False}
    own = (data.prompts, data.references)
    start = network(64, 2, 100 + seed)
    teacher = sequence_student(start, *own, alpha=0.0, epochs=10, lr=4e-3, batch_size=BATCH, **run).model
    yield {"method": "teacher", "steps": 10 * PAIRS // BATCH, **measured(teacher, held_out)}
    searched = teacher_outputs(teacher, data.prompts, beam=BEAM, length=length, end=data.end)
    sampled = sample_outputs(teacher, data.prompts, length=length, end=data.end, seed=seed)
    methods: dict[str, dict[str, Any]] = {
        "NLL": {"alpha": 0.0},
        "word level": {"teacher": teacher, "alpha": 1.0},
        "sequence level": {"outputs": searched, "alpha": 1.0},
        "mixture": {"outputs": searched, "alpha": 0.5},
        "sampled outputs": {"outputs": sampled, "alpha": 1.0},
        "true modes": {"outputs": data.likeliest(), "alpha": 1.0},
        "NLL, twice the batch": {"alpha": 0.0, "batch_size": 2 * BATCH},
        "mixture, both in each step": {"outputs": searched, "alpha": 0.5, "batch_size": 2 * BATCH},
    }
    for name, method in methods.items():
        size = method.pop("batch_size", BATCH)
        sets = 2 if 0 < method["alpha"] < 1 else 1  # references and outputs are one set of twice the rows
        for steps in (376, 1128):
            options = {"epochs": steps * size // (sets * PAIRS), "batch_size": size, "lr": 1e-2, **run}
            student = sequence_student(network(16, 1, seed), *own, **method, **options).model
            yield {"method": name, "steps": steps, **measured(student, held_out)}


if __name__ == "__main__":
    run_parts({"number words": rows}, SEEDS, RESULTS, about=__doc__)
