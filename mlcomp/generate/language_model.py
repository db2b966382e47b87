"""What a pipeline of synthetic data knows of a language model: it continues texts, and the seed of each is given.

Whatever has ``identity`` and ``generate`` of :class:`LanguageModel` fits: a model of transformers, a server that
speaks OpenAI's protocol, answers recorded before.   Syllabus: 4.18
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from mlcomp.checks import check_interval, check_whole

SEEDS = 2**31 - 1  # the largest seed: what every server takes


@dataclass(frozen=True)
class Sampling:
    """How to draw a text.

    Args:
        max_tokens: a reply is cut after so many tokens.
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_p: of the tokens, the likeliest that together have this probability are left (Holtzman et al. 2020,
            arXiv:1904.09751); 1 leaves all.
        stop: a reply ends before the first of these strings.
        chat: the prompt is what a user says to an assistant, in the model's chat format; otherwise the model goes on
            where the prompt ends.
    Raises:
        ValueError: a number out of range, an empty stop string.
    """

    max_tokens: int = 64
    temperature: float | int = 1.0
    top_p: float | int = 1.0
    stop: Sequence[str] = ()
    chat: bool = False

    def __post_init__(self) -> None:
        check_whole("max_tokens", self.max_tokens, 1)
        check_interval("temperature", self.temperature, "[0, inf)")
        check_interval("top_p", self.top_p, "(0, 1]")
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise ValueError(f"stop must be a tuple of strings that are not empty, got {self.stop!r}")
        object.__setattr__(self, "stop", tuple(self.stop))


@dataclass(frozen=True)
class Reply:
    """A text, and whether the model ended it by itself (or at a stop string): otherwise ``max_tokens`` cut it."""

    text: str
    ended: bool


@runtime_checkable
class LanguageModel(Protocol):
    """A language model, wherever it runs."""

    @property
    def identity(self) -> str:
        """What a reply depends on beside prompt, seed and sampling: other weights have another identity."""

    def generate(self, prompts: Sequence[str], *, seeds: Sequence[int], sampling: Sampling) -> list[Reply]:
        """Return one reply for each prompt; it depends on its own seed, not on those of the others."""


def item_seed(seed: int, *place: int | str) -> int:
    """Return the seed of one item of a run with ``seed``; it does not depend on what else is drawn."""
    check_whole("seed", seed, 0)
    digest = hashlib.sha256("/".join(map(str, (seed, *place))).encode()).digest()
    return int.from_bytes(digest[:4], "big") % SEEDS


def check_prompts(prompts: Sequence[str], seeds: Sequence[int]) -> None:
    """Raise unless there are prompts, none of them empty, and as many seeds."""
    if isinstance(prompts, str) or not len(prompts) or not all(isinstance(p, str) and p for p in prompts):
        raise ValueError("prompts must be a sequence of at least one string, none of them empty")
    if len(seeds) != len(prompts):
        raise ValueError(f"give one seed for each prompt: got {len(prompts)} prompts and {len(seeds)} seeds")
    for seed in seeds:
        check_whole("each seed", seed, 0, SEEDS)
