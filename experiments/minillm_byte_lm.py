"""MiniLLM on byte-level language models: each of its three tricks left out, and other distillation in the same time.

    python experiments/minillm_byte_lm.py                     # all; about five minutes on one core
    python experiments/minillm_byte_lm.py --part "no mixing"  # or any other of its parts
    python experiments/minillm_byte_lm.py --seeds 0           # what is there already is not run again

The course's model of width 64 teaches the one of width 16; both have learned the same text. A prompt is 16 bytes of
it, an output at most 16 bytes that end with a newline. Each student takes 80 steps of 32 prompts, all at the same
learning rate; α = 0.2.

own outputs, no long-term part: KL(student ‖ teacher) of the next byte on what the student says, no policy gradient.
word level: KL(teacher ‖ student) of the next byte on the text's own continuations. sequence level: the teacher's
likeliest continuations, found greedily, as labels. Both also in about the seconds of all three tricks.

Each network is a row of ``mlcomp/data/tables/minillm_byte_lm.csv``, measured on 512 held-out prompts: KL(student ‖
teacher) on the student's outputs, summed exactly over the next byte, for each byte and each output; the bytes of an
output, the share that is a newline alone; KL(teacher ‖ student) for each byte on the teacher's outputs; −log q of the
text's own continuations [nats a byte]; CPU seconds of training.
"""

import sys
import time
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks, which is no part of the installed package

from benchmarks.record import run_parts
from mlcomp.data import python_reference, reference_bytes
from mlcomp.data.committed_table import TABLES
from mlcomp.distill import minillm, sequence_student, soft_target_loss
from mlcomp.generate import output_log_probability, sample_outputs
from mlcomp.generate.outputs import output_mask
from mlcomp.layerwise.fit import copy_model
from mlcomp.models import byte_lm, token_decoder
from mlcomp.models.byte_lm import LAYERS
from mlcomp.modes import evaluating
from mlcomp.train import train

RESULTS = TABLES / "minillm_byte_lm.csv"
SEEDS = range(3)
PROMPT, LENGTH, END = 16, 16, ord("\n")
STEPS, BATCH = 80, 32
RUN = {"epochs": 1, "lr": 5e-4, "batch_size": BATCH, "progress": False}
OUTPUT = {"length": LENGTH, "end": END}

Row = dict[str, object]


@cache
def trained(width: int) -> nn.Module:
    """Return a model of the course in a form that goes on from what it has computed."""
    net = token_decoder(256, width, LAYERS)
    net.load_state_dict(byte_lm(width).state_dict())
    return net


teacher, start = partial(trained, 64), partial(trained, 16)


def drawn(text: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return prompts at random places of a text, and the bytes that follow them."""
    places = torch.randint(len(text) - PROMPT - LENGTH, (count,), generator=torch.Generator().manual_seed(seed))
    rows = text[places[:, None] + torch.arange(PROMPT + LENGTH)]
    return rows[:, :PROMPT], rows[:, PROMPT:]


def taught_text() -> Tensor:
    """Return the text that both models have learned."""
    return torch.tensor(list(python_reference("calibration").encode()), dtype=torch.int64)


def policy(seed: int, **tricks: object) -> tuple[nn.Module, int]:
    """Return a student of MiniLLM, and its steps."""
    prompts, _ = drawn(taught_text(), STEPS * BATCH, seed)
    return minillm(start(), teacher(), prompts, seed=seed, **OUTPUT, **RUN, **tricks).model, STEPS


def own_outputs(seed: int) -> tuple[nn.Module, int]:
    """Return a student of the next byte's reverse divergence on its own outputs."""
    prompts, _ = drawn(taught_text(), STEPS * BATCH, seed)
    student = copy_model(start())

    def outputs(batch: Tensor, generator: torch.Generator) -> Tensor:
        said = sample_outputs(student, batch, seed=int(torch.randint(2**31, (), generator=generator)), **OUTPUT)
        return torch.cat((batch, said), 1)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student = student

        def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
            counts = output_mask(rows[:, PROMPT:], end=END)
            with torch.no_grad():
                theirs = teacher()(rows[:, :-1])
            return self.student(rows[:, :-1])[:, PROMPT - 1 :][counts], theirs[:, PROMPT - 1 :][counts]

    def loss(both: tuple[Tensor, Tensor], _: Tensor) -> Tensor:
        return soft_target_loss(*both, temperature=1.0, direction="reverse")

    nothing = torch.zeros(len(prompts), dtype=torch.int64)
    train(Both(), prompts, nothing, loss=loss, augment=outputs, seed=seed, **RUN)
    return student, STEPS


def word_level(seed: int, steps: int) -> tuple[nn.Module, int]:
    """Return a student of the teacher's probabilities on the text itself."""
    prompts, references = drawn(taught_text(), steps * BATCH, seed)
    run = {"end": END, "alpha": 1.0, "seed": seed}
    return sequence_student(start(), prompts, references, teacher=teacher(), **run, **RUN).model, steps


def sequence_level(seed: int, epochs: int) -> tuple[nn.Module, int]:
    """Return a student of the teacher's likeliest continuations."""
    prompts, references = drawn(taught_text(), STEPS * BATCH, seed)
    run = RUN | {"end": END, "alpha": 1.0, "seed": seed, "epochs": epochs}
    said = sample_outputs(teacher(), prompts, temperature=0, **OUTPUT)
    return sequence_student(start(), prompts, references, outputs=said, **run).model, epochs * STEPS


def at_outputs(net: nn.Module, prompts: Tensor, outputs: Tensor) -> Tensor:
    """Return the logits at each byte of the outputs, one below the other."""
    rows = torch.cat((prompts, outputs), 1)[:, :-1]
    return net(rows)[:, PROMPT - 1 :][output_mask(outputs, end=END)]


@cache
def held_out() -> tuple[Tensor, Tensor, Tensor]:
    """Return prompts, what follows in the text, and what the teacher says."""
    prompts, references = drawn(reference_bytes(), 512, seed=0)
    return prompts, references, sample_outputs(teacher(), prompts, seed=1, **OUTPUT)


def divergence(net: nn.Module, outputs: Tensor, direction: str) -> float:
    """Return the divergence of the next byte between a student and the teacher, the mean over outputs' bytes."""
    ours, theirs = (at_outputs(model, held_out()[0], outputs) for model in (net, teacher()))
    return float(soft_target_loss(ours, theirs, temperature=1.0, direction=direction))


def measured(net: nn.Module) -> Row:
    """Return the columns of a network."""
    prompts, references, taught = held_out()
    with evaluating(net):
        said = sample_outputs(net, prompts, seed=2, **OUTPUT)
        sizes = output_mask(said, end=END).sum(1).double()
        reverse, forward = divergence(net, said, "reverse"), divergence(net, taught, "forward")
        likely = output_log_probability(net, prompts, references, end=END)
    found = {
        "reverse_byte": reverse,
        "reverse_output": reverse * float(sizes.mean()),
        "length": float(sizes.mean()),
        "empty": float((sizes == 1).double().mean()),
        "forward_byte": forward,
        "nll": -float(likely.sum() / output_mask(references, end=END).sum()),
    }
    return {name: round(value, 4) for name, value in found.items()}


# Seconds were measured once: a step of the word level takes a quarter of one of MiniLLM, and eight epochs of labels
# as long as the rest of its run, once the teacher has spoken.
METHODS = {
    "start": lambda seed: (start(), 0),
    "teacher": lambda seed: (teacher(), 0),
    "all three": policy,
    "no single step": partial(policy, single_step=False),
    "no mixing": partial(policy, mixing=0.0),
    "no length normalization": partial(policy, length_normalized=False),
    "none": partial(policy, single_step=False, mixing=0.0, length_normalized=False),
    "own outputs, no long-term part": own_outputs,
    "word level": partial(word_level, steps=STEPS),
    "sequence level": partial(sequence_level, epochs=1),
    "word level, equal seconds": partial(word_level, steps=4 * STEPS),
    "sequence level, equal seconds": partial(sequence_level, epochs=8),
}


def rows(method: str, seed: int) -> Iterator[Row]:
    """Yield the row of a student."""
    began = time.process_time()
    net, steps = METHODS[method](seed)
    spent = time.process_time() - began
    yield {"steps": steps, **measured(net), "cpu_seconds": round(spent, 1)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    seeds = {method: SEEDS if method not in ("start", "teacher") else (0,) for method in METHODS}
    run_parts({method: partial(rows, method) for method in METHODS}, seeds, RESULTS, about=__doc__)
