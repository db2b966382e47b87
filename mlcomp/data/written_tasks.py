"""Sentences with labels, and instructions, written by hand: what a student of synthetic data is measured on.

Two tasks in which a short text has one of a few classes. Each class has four examples, to be shown to a language
model, and twenty or forty sentences that no model and no prompt sees. All of them were written before a model had
made a sentence for these tasks, and are part of this package (CC-BY-4.0, as the book's text).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from mlcomp.checks import check_choice

TASKS = ("messages", "reviews")


@dataclass(frozen=True)
class WrittenTask:
    """A task of classification.

    Args:
        heading: what the texts are, in the plural.
        classes: class → the words that end the sentence "Each of them is …".
        examples, held_out: class → texts.
    """

    heading: str
    classes: Mapping[str, str]
    examples: Mapping[str, tuple[str, ...]]
    held_out: Mapping[str, tuple[str, ...]]

    def texts_and_labels(self, part: str) -> tuple[list[str], list[int]]:
        """Return the texts of "examples" or "held_out", and of each the place of its class.

        Raises:
            ValueError: another part.
        """
        check_choice("part", part, ("examples", "held_out"))
        texts = getattr(self, part)
        pairs = [(text, place) for place, name in enumerate(self.classes) for text in texts[name]]
        return [text for text, _ in pairs], [place for _, place in pairs]


def written_task(name: str) -> WrittenTask:
    """Return the task "messages" (to a shop; 4 classes, 80 held out) or "reviews" (2 classes, 80 held out).

    Raises:
        ValueError: another name.
    """
    check_choice("name", name, TASKS)
    found = _written()[name]
    examples, held_out = (
        {key: tuple(texts) for key, texts in found[part].items()} for part in ("examples", "held_out")
    )
    return WrittenTask(found["heading"], dict(found["classes"]), examples, held_out)


def seed_tasks() -> list[str]:
    """Return 24 instructions, one task each: what a model that is to invent more of them is shown."""
    return list(_written()["seed_tasks"])


@cache
def _written() -> dict:
    text = files("mlcomp.data").joinpath("texts", "written_tasks.json").read_text(encoding="utf-8")
    return json.loads(text)
