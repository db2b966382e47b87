"""Synthetic data from SmolLM2: how much of it is kept, and what a student learns from it.

    python experiments/synthetic_data.py                          # all; six minutes on one quiet core
    python experiments/synthetic_data.py --part messages          # or reviews, self_instruct, likelihood

messages, reviews: SmolLM2 writes texts of each class, shown three hand-written examples at a time. The student is a
    linear layer on MiniLM's sentence vectors. It is measured on 80 hand-written texts, beside the nearest class name,
    a layer that learned from the examples alone, and one that learned from the other hand-written texts (five folds).
    Controls: the same texts with shuffled labels, and without vote and filter.
likelihood: SmolLM2 as the classifier of the same texts, by the likelihood of the class's name: plain; less the one
    that it has for an empty text; both also with all examples shown before.
self_instruct: four rounds of eight prompts; a row for each filter.

What SmolLM2 answered is kept in ``mlcomp/data/tables/synthetic_answers.json``: where it is there, the model is not
asked again. The measurements are rows of ``mlcomp/data/tables/synthetic_data.csv``.
"""

import copy
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks, which is no part of the installed package

from benchmarks.record import origin, run_parts
from mlcomp.data.committed_table import TABLES
from mlcomp.data.written_tasks import TASKS, WrittenTask, seed_tasks, written_task
from mlcomp.generate import (
    RecordedAnswers,
    TransformersModel,
    parse_numbered,
    self_instruct,
    synthetic_classifier,
)
from mlcomp.generate.language_model import item_seed
from mlcomp.generate.synthetic_classifier import SAMPLING, class_prompts, head_accuracy, train_head
from mlcomp.models.minilm import embed, minilm
from mlcomp.modes import evaluating

RESULTS, ANSWERS = TABLES / "synthetic_data.csv", TABLES / "synthetic_answers.json"
SEEDS = {"messages": range(2), "reviews": range(2), "self_instruct": range(1), "likelihood": range(1)}
PROMPTS = {"messages": 8, "reviews": 16}  # a class: 32 in all
ROUNDS, FOLDS = 4, 5

Row = dict[str, object]
teacher = cache(TransformersModel)


@cache
def encoder():
    """Return a function from texts to vectors."""
    return partial(embed, *minilm())


@cache
def answers() -> RecordedAnswers:
    """Return SmolLM2 with a memory on file."""
    seeds = sorted({seed for part in SEEDS.values() for seed in part})
    return RecordedAnswers(ANSWERS, model=teacher(), about={"origin": origin(seed=seeds)})


def unfiltered(task: WrittenTask, name: str, seed: int) -> list[tuple[str, str]]:
    """Return all texts that stand in the replies."""
    asked = class_prompts(task, prompts=PROMPTS[name], shown=3, seed=seed)
    texts, seeds = [prompt for prompt, _ in asked], [item_seed(seed, n) for n in range(len(asked))]
    replies = answers().generate(texts, seeds=seeds, sampling=SAMPLING)
    return [(text, own) for reply, (_, own) in zip(replies, asked, strict=True) for text in parse_numbered(reply)]


def learned(task: WrittenTask, rows: Sequence[tuple[str, str]], seed: int, *, shuffle: bool = False) -> Row:
    """Return the accuracy of a layer that learned from rows of text and class."""
    labels = torch.tensor([list(task.classes).index(name) for _, name in rows])
    if shuffle:
        labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    head = train_head(encoder()([text for text, _ in rows]), labels, classes=len(task.classes), seed=seed)
    return {"accuracy": accuracy(task, head), "texts": len(rows)}


def accuracy(task: WrittenTask, head: dict[str, Tensor]) -> float:
    """Return the accuracy on the held-out texts."""
    texts, truth = task.texts_and_labels("held_out")
    return head_accuracy(head, encoder()(texts), torch.tensor(truth))


def of_the_held_out(task: WrittenTask, seed: int) -> Row:
    """Return the accuracy of layers that learned from four fifths of the held-out texts, on the other fifth."""
    texts, truth = task.texts_and_labels("held_out")
    vectors, labels = encoder()(texts), torch.tensor(truth)
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed))
    right = 0.0
    for fold in range(FOLDS):
        test = order[fold::FOLDS]
        rest = torch.tensor(sorted({*range(len(texts))} - {*test.tolist()}))
        head = train_head(vectors[rest], labels[rest], classes=len(task.classes), seed=seed)
        right += head_accuracy(head, vectors[test], labels[test]) * len(test)
    return {"accuracy": right / len(texts), "texts": len(texts) - len(texts) // FOLDS}


class Reader:
    """SmolLM2 as the classifier: its log-probability, after a text, of the first token of each class's name.

    Args:
        before: what stands before every text; it is read once.
        names: of the classes; their first tokens differ.
    """

    def __init__(self, before: str, names: Sequence[str]):
        self.model, self.tokenizer = teacher().model, teacher().tokenizer
        self.firsts = torch.tensor([self.tokenizer(" " + name)["input_ids"][0] for name in names])
        assert len(self.firsts.unique()) == len(names)
        with evaluating(self.model):
            self.cache = self.model(self._tokens(before), use_cache=True).past_key_values

    def _tokens(self, text: str) -> Tensor:
        return torch.tensor([self.tokenizer(text)["input_ids"]])

    def __call__(self, text: str) -> Tensor:
        """Return one number for each name."""
        with evaluating(self.model):
            out = self.model(self._tokens(f"Text: {text}\nKind:"), past_key_values=copy.deepcopy(self.cache))
        return out.logits[0, -1].log_softmax(0)[self.firsts]


def by_likelihood(task: WrittenTask) -> Iterator[Row]:
    """Yield the rows of SmolLM2 as the classifier."""
    names, (texts, truth) = list(task.classes), task.texts_and_labels("held_out")
    examples, labels = task.texts_and_labels("examples")
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0)).tolist()
    heading = f"Here are {task.heading}, each with its kind: {', '.join(names)}.\n\n"
    shown = "".join(f"Text: {examples[i]}\nKind: {names[labels[i]]}\n\n" for i in order)
    for method, before in (("SmolLM2", heading), ("SmolLM2, shown the examples", heading + shown)):
        reader = Reader(before, names)
        scores, empty = torch.stack([reader(text) for text in texts]), reader("")
        for suffix, offset in (("", 0), (", calibrated", empty)):
            right = ((scores - offset).argmax(1) == torch.tensor(truth)).double().mean()
            yield {"method": method + suffix, "accuracy": float(right), "texts": 0}


def task_part(name: str, seed: int) -> Iterator[Row]:
    """Yield the rows of a task and a seed."""
    task = written_task(name)
    if seed == 0:
        names = encoder()([f"This is {words}." for words in task.classes.values()])
        yield {"method": "nearest class", "accuracy": accuracy(task, {"weight": names, "bias": torch.zeros(())})}
    texts, labels = task.texts_and_labels("examples")
    examples = [(text, list(task.classes)[label]) for text, label in zip(texts, labels, strict=True)]
    yield {"method": "examples", **learned(task, examples, seed)}
    with tempfile.TemporaryDirectory() as folder:
        student = synthetic_classifier(folder, task, answers(), encoder(), prompts=PROMPTS[name], seed=seed)
    yield {"method": "synthetic", "accuracy": student.accuracy, "texts": len(student.rows)}
    yield {"method": "synthetic and examples", **learned(task, [*student.rows, *examples], seed)}
    yield {"method": "synthetic, shuffled labels", **learned(task, student.rows, seed, shuffle=True)}
    everything = unfiltered(task, name, seed)
    yield {"method": "synthetic, unfiltered", **learned(task, everything, seed)}
    yield {"method": "hand-written, five folds", **of_the_held_out(task, seed)}
    for step, count in student.counts.items():
        yield {"method": f"funnel: {step}", "texts": count}


def likelihood_part(seed: int) -> Iterator[Row]:
    """Yield the rows of SmolLM2 as the classifier of both tasks."""
    for name in TASKS:
        for row in by_likelihood(written_task(name)):
            yield row | {"method": f"{name}: {row['method']}"}


def instructions_part(seed: int) -> Iterator[Row]:
    """Yield the funnel of self-instruct."""
    with tempfile.TemporaryDirectory() as folder:
        found = self_instruct(folder, answers(), seed_tasks(), rounds=ROUNDS, seed=seed)
    yield {"method": "prompts", "texts": found.prompts}
    for step, count in found.funnel():
        yield {"method": step, "texts": count}


def rows(part: str, seed: int) -> Iterator[Row]:
    """Yield the rows of a part, all with the same columns."""
    others = {"self_instruct": instructions_part, "likelihood": likelihood_part}
    for row in others[part](seed) if part in others else task_part(part, seed):
        share = row.get("accuracy", "")
        yield {
            "method": row["method"],
            "accuracy": share if share == "" else round(float(share), 4),
            "texts": row.get("texts", 0),
        }


if __name__ == "__main__":
    run_parts({part: partial(rows, part) for part in SEEDS}, SEEDS, RESULTS, about=__doc__)
