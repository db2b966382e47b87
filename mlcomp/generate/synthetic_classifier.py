"""From a few examples of each class to a classifier: a language model writes its training data.

The class is given and the text is drawn, "output first" as self-instruct has it for classification: a model that is
given a text to label, or both to invent, writes mostly of one class.
Source: Wang et al. 2023, arXiv:2212.10560, section 2.2, step 3 (output-first); Viswanathan et al. 2023,
arXiv:2308.12261 (Prompt2Model: generate, vote, train, evaluate).   Syllabus: 4.18
"""

import os
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mlcomp.checks import check_whole
from mlcomp.data.written_tasks import WrittenTask
from mlcomp.generate.language_model import LanguageModel, Reply, Sampling, item_seed
from mlcomp.generate.pipeline import Pipeline
from mlcomp.generate.self_instruct import list_prompt, parse_numbered
from mlcomp.generate.sift import sift
from mlcomp.generate.vote import vote_each
from mlcomp.train.loop import train

SAMPLING = Sampling(max_tokens=96, temperature=0.7, top_p=0.9, stop=("\n\n",))
MOST_WORDS = 40

Pairs = Sequence[Sequence[str]]  # of text and class


@dataclass(frozen=True)
class Student:
    """A classifier on top of an encoder, and what it learned from.

    Args:
        weight, bias: of the linear layer from the encoder's vectors to the classes' logits.
        rows: the texts that it learned from, each with its class.
        accuracy: the share of the held-out texts that it is right about.
        counts: step → how many items it left.
    """

    weight: Tensor
    bias: Tensor
    rows: tuple[tuple[str, str], ...]
    accuracy: float
    counts: dict[str, int]


def synthetic_classifier(
    folder: str | os.PathLike,
    task: WrittenTask,
    model: LanguageModel,
    embed: Callable[[Sequence[str]], Float[Tensor, "n dim"]],
    *,
    prompts: int = 16,
    shown: int = 3,
    sampling: Sampling = SAMPLING,
    batch: int = 8,
    seed: int = 0,
) -> Student:
    """Load, prompt, generate, parse, vote, filter, train, evaluate; each step is done once.

    Args:
        folder: new, or one of an earlier run, which then goes on where it was stopped.
        task: its examples are shown to the model; its held-out texts are what the student is measured on.
        model: writes the texts.
        embed: returns one vector for each text; it is not trained.
        prompts: how many for each class; each is answered by several texts.
        shown: how many examples of the class stand in a prompt.
        batch: prompts that the model gets at once.
        seed: of the examples shown, the replies, and the training.
    Raises:
        ValueError: a number out of range; fewer examples than ``shown``; a class of which no text is left.
    Guarantee: the same arguments give the same student, also where the run was killed and begun again.
    """
    check_whole("prompts", prompts, 1)
    check_whole("shown", shown, 1, min(map(len, task.examples.values())))
    names = list(task.classes)
    pipeline = Pipeline(folder)
    examples = pipeline.step("load", load_examples, task)
    asked = pipeline.step("prompt", class_prompts, task, prompts=prompts, shown=shown, seed=seed)
    replies = pipeline.generate(
        "generate", model, [prompt for prompt, _ in asked], seed=seed, sampling=sampling, batch=batch
    )
    answered = [[reply.text, reply.ended, name] for reply, (_, name) in zip(replies, asked, strict=True)]
    parsed = pipeline.step("parse", parse_all, answered)
    voted = pipeline.step("vote", vote_all, parsed)
    rows = pipeline.step("filter", keep_new, voted, examples)
    lacking = set(names) - {name for _, name in rows}
    if lacking:
        raise ValueError(f"no text of {', '.join(sorted(lacking))} is left: ask with more prompts")
    labels = torch.tensor([names.index(name) for _, name in rows])
    head = pipeline.step(
        "train", train_head, embed([text for text, _ in rows]), labels, classes=len(names), seed=seed
    )
    texts, truth = task.texts_and_labels("held_out")
    accuracy = pipeline.step("evaluate", head_accuracy, head, embed(texts), torch.tensor(truth))
    pairs = tuple((text, name) for text, name in rows)
    return Student(head["weight"], head["bias"], pairs, accuracy, dict(pipeline.counts))


def load_examples(task: WrittenTask) -> list[tuple[str, str]]:
    """Return the examples, each with its class."""
    texts, labels = task.texts_and_labels("examples")
    return list(zip(texts, (list(task.classes)[label] for label in labels), strict=True))


def class_prompts(task: WrittenTask, *, prompts: int, shown: int, seed: int) -> list[tuple[str, str]]:
    """Return prompts, each with the class that it asks for; the classes take turns."""
    made = []
    for number in range(prompts):
        for name, words in task.classes.items():
            draw = random.Random(item_seed(seed, "shown", name, number))
            heading = f"Here is a list of {task.heading}. Each of them is {words}."
            made.append((list_prompt(heading, draw.sample(task.examples[name], shown)), name))
    return made


def parse_all(answered: Sequence[Sequence[Any]]) -> list[tuple[str, str]]:
    """Return the texts that stand in the replies, each with its class."""
    return [(text, name) for said, ended, name in answered for text in parse_numbered(Reply(said, ended))]


def vote_all(parsed: Pairs) -> list[tuple[str, str]]:
    """Return each text once, with the class that it was written for most often."""
    return vote_each((text, name) for text, name in parsed)


def keep_new(voted: Pairs, examples: Pairs) -> list[Sequence[str]]:
    """Return what passes the filters: of a sentence's length, and not like an example or an earlier text."""
    texts = [text for text, _ in voted]
    pool = [text for text, _ in examples]
    reasons = sift(texts, pool=pool, most=MOST_WORDS, banned=(), programs=True).reasons
    return [pair for pair, reason in zip(voted, reasons, strict=True) if not reason]


def train_head(vectors: Tensor, labels: Tensor, *, classes: int, seed: int) -> dict[str, Tensor]:
    """Return weight and bias of a linear layer that learned the labels; each class weighs the same in the loss."""
    head = nn.Linear(vectors.shape[1], classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    counts = Counter(labels.tolist())
    weight = torch.tensor([len(labels) / (classes * max(1, counts[c])) for c in range(classes)])
    loss = nn.CrossEntropyLoss(weight=weight)
    train(head, vectors, labels, epochs=60, lr=0.05, batch_size=32, seed=seed, loss=loss, progress=False)
    return {"weight": head.weight.detach(), "bias": head.bias.detach()}


def head_accuracy(head: dict[str, Tensor], vectors: Tensor, labels: Tensor) -> float:
    """Return the share of vectors whose largest logit is that of their label."""
    logits = vectors @ head["weight"].T + head["bias"]
    return float((logits.argmax(1) == labels).double().mean())
