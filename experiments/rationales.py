"""Rationales: a teacher's votes, and students that learn from one or many of its rationales for each question.

    python experiments/rationales.py                   # all; half an hour on one core
    python experiments/rationales.py --part teacher
    python experiments/rationales.py --part students_300 --seeds 0    # what is there is not run again

Questions are products of four elements of the dihedral group of order 10. The teacher learned from 4000 questions
with one right rationale each; students never see those, nor right rationales of anyone: only what the teacher writes
about 300 or 1000 other questions. All are decoders of two blocks, 64 wide, all students take 2000 steps of 64 texts,
and are asked 500 questions that nobody saw.

label-only: the answer alone. greedy: the teacher's likeliest rationale. sampled: N rationales at temperature 1.
noisy: what the teacher says, right or wrong. filtered: only texts with the right answer; its labels are right, too.
Accuracy of the likeliest text, of one text drawn at temperature 1, and of the vote of 15.

Each network is a row of ``mlcomp/data/tables/rationales.csv``.
"""

import sys
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks, which is no part of the installed package

from benchmarks.record import run_parts
from mlcomp.data import group_products
from mlcomp.data.committed_table import TABLES
from mlcomp.data.group_products import EQUALS, STOP, VOCABULARY, answers, rationales, right_steps, stated_answers
from mlcomp.generate import majority_vote, sample_outputs, sample_rationales
from mlcomp.models import token_decoder
from mlcomp.train import train

RESULTS = TABLES / "rationales.csv"
WIDTH, LAYERS = 64, 2
LONGEST = 9  # tokens of a right rationale
SEEDS = {"teacher": range(3), "students_1000": range(3), "students_300": range(1)}
COUNTS = (1, 5, 10, 20, 30)
VOTES = (1, 2, 3, 5, 10, 15, 30)
SAMPLES = 15
IGNORED = -100  # labels that the loss leaves out

Row = dict[str, object]


def prompts(questions: Tensor) -> Tensor:
    """Return "a b c d =" for each question."""
    return F.pad(questions, (0, 1), value=EQUALS)


def response_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of the tokens that are to be learned."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


def taught(questions: Tensor, texts: Tensor, *, steps: int, seed: int) -> nn.Module:
    """Return a new network, trained to write ``texts`` after the questions, all of them about equally often."""
    whole = torch.cat((prompts(questions), texts), 1)
    labels = whole[:, 1:].clone()
    labels[:, : questions.shape[1]] = IGNORED
    after = (texts == STOP).cumsum(1).sub((texts == STOP).long()) > 0  # places behind the first stop
    labels[:, questions.shape[1] :][after] = IGNORED
    generator = torch.Generator().manual_seed(seed)
    needed = 64 * steps
    passes = -(-needed // len(whole))
    order = torch.cat([torch.randperm(len(whole), generator=generator) for _ in range(passes)])[:needed]
    net = token_decoder(VOCABULARY, WIDTH, LAYERS, seed=seed)
    train(net, whole[order, :-1], labels[order], epochs=1, lr=4e-3, seed=seed, loss=response_loss, progress=False)
    return net


@cache
def questions(seed: int) -> dict[str, Tensor]:
    """Return questions to be asked in the end, those of the teacher, and those of the students."""
    asked = group_products(500, seed=100 + seed)
    teaching = group_products(4000, seed=200 + seed, without=asked)
    learning = group_products(1000, seed=300 + seed, without=torch.cat((asked, teaching)))
    return {"asked": asked, "teaching": teaching, "learning": learning}


@cache
def teacher(seed: int) -> nn.Module:
    """Return the teacher, which learned from right rationales."""
    own = questions(seed)["teaching"]
    return taught(own, rationales(own, seed=seed), steps=1200, seed=seed)


def likeliest(net: nn.Module, asked: Tensor) -> Tensor:
    """Return the likeliest of what a network may write about the questions."""
    return sample_outputs(net, prompts(asked), length=LONGEST, end=STOP, temperature=0)


def drawn(net: nn.Module, asked: Tensor, samples: int, *, seed: int = 0) -> Tensor:
    """Return what a network writes about the questions at temperature 1, (samples, questions, tokens)."""
    return sample_rationales(net, prompts(asked), samples=samples, length=LONGEST, end=STOP, seed=seed)


def right(stated: Tensor, asked: Tensor) -> float:
    """Return the share of right answers."""
    return round(float((stated == answers(asked)).double().mean()), 4)


def measured(net: nn.Module, asked: Tensor, samples: int = SAMPLES) -> tuple[Row, Tensor]:
    """Return the accuracies, and the answers of the samples, (samples, questions)."""
    best = likeliest(net, asked)
    stated = torch.stack([stated_answers(texts) for texts in drawn(net, asked, samples)])
    found = {
        "greedy": right(stated_answers(best), asked),
        "one": round(float((stated == answers(asked)).double().mean()), 4),
        "votes": right(majority_vote(stated[:SAMPLES]), asked),
        "right_steps": round(float(right_steps(asked, best).double().mean()), 4),
    }
    return found, stated


def teacher_part(seed: int) -> Iterator[Row]:
    """Yield the accuracy of the teacher's vote for several numbers of samples; 30 samples of each question."""
    asked = questions(seed)["asked"]
    found, stated = measured(teacher(seed), asked, max(VOTES))
    yield {"method": "teacher", **found}
    for count in VOTES:
        groups = [right(majority_vote(part, seed=i), asked) for i, part in enumerate(stated.split(count))]
        yield {"method": "votes", "rationales": count, "votes": round(sum(groups) / len(groups), 4)}


def texts_of(method: str, count: int, own: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return questions and the teacher's texts about them; the first N samples are those of a larger N, too."""
    if method == "greedy":
        return own, likeliest(teacher(seed), own)
    if method == "label-only":
        stated = stated_answers(likeliest(teacher(seed), own))
        return own[stated >= 0], F.pad(stated[stated >= 0, None], (0, 1), value=STOP)
    return own.repeat(count, 1), torch.cat([texts[: len(own)] for texts in samples_of(seed)[:count]])


@cache
def samples_of(seed: int) -> Tensor:
    """Return 30 rationales of the teacher for each of the students' questions, (30, questions, tokens)."""
    return drawn(teacher(seed), questions(seed)["learning"], max(COUNTS), seed=1000)


def students_part(size: int, seed: int) -> Iterator[Row]:
    """Yield the students of a seed."""
    asked, own = questions(seed)["asked"], questions(seed)["learning"][:size]
    for method, count in (("label-only", 1), ("greedy", 1), *(("sampled", count) for count in COUNTS)):
        said, texts = texts_of(method, count, own, seed)
        good = stated_answers(texts) == answers(said)
        # The numbers between the extremes once, to save an hour.
        for kind in ("noisy", "filtered") if count in (1, max(COUNTS)) else ("noisy",):
            if kind == "filtered" and method == "label-only":  # labels, where there are some, need no teacher
                said, texts = own, F.pad(answers(own)[:, None], (0, 1), value=STOP)
            elif kind == "filtered":
                said, texts = said[good], texts[good]
            usable = (stated_answers(texts) >= 0) & (texts == STOP).any(1)
            net = taught(said[usable], texts[usable], steps=2000, seed=10 + seed)
            about = {"kind": kind, "rationales": count, "texts": int(usable.sum())}
            yield {"method": method, **about, **measured(net, asked)[0]}


COLUMNS = ("method", "kind", "rationales", "texts", "greedy", "one", "votes", "right_steps")
PARTS = {
    "teacher": teacher_part,
    "students_1000": partial(students_part, 1000),
    "students_300": partial(students_part, 300),
}


def rows(part: str, seed: int) -> Iterator[Row]:
    """Yield the rows of a part, all with the same columns."""
    for row in PARTS[part](seed):
        yield {column: row.get(column, "") for column in COLUMNS}


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_parts({part: partial(rows, part) for part in PARTS}, SEEDS, RESULTS, about=__doc__)
