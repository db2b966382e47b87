"""What the exercise notebooks import: fresh random numbers for the checks, and the points so far."""

import random

import torch

_seeds: random.Random = random.SystemRandom()


def fresh_generator() -> torch.Generator:
    """Return a generator with a new seed at each call, so that a check never sees the same inputs twice."""
    return torch.Generator().manual_seed(_seeds.randrange(2**62))


def reseed(seed: int) -> None:
    """Make the following :func:`fresh_generator` calls repeat: the grader does, to be able to grade again alike."""
    global _seeds
    _seeds = random.Random(seed)


class Points:
    """The points earned so far by the visible checks of a notebook."""

    def __init__(self, questions: dict[str, int]) -> None:
        """``questions``: the points of each automatically graded question, by its name."""
        self.questions = dict(questions)
        self._earned: set[str] = set()

    def earned(self, question: str) -> None:
        """Note that the visible checks of ``question`` passed, and print the points so far."""
        if question not in self.questions:
            raise ValueError(f"there is no question {question!r}; there are {', '.join(self.questions)}")
        self._earned.add(question)
        so_far = sum(self.questions[name] for name in self._earned)
        points = self.questions[question]
        print(
            f"Passed: {points} point{'s' * (points != 1)}. Points so far: {so_far} of {sum(self.questions.values())}."
        )
