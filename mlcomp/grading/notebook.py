"""What the exercise notebooks import: fresh random numbers, checks that questions share, the points so far."""

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

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


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return ``function(*arguments)``; raise AssertionError if it changed a tensor among them."""
    before = [a.clone() if isinstance(a, Tensor) else a for a in arguments]
    result = function(*arguments)
    for old, new in zip(before, arguments, strict=True):
        assert not isinstance(old, Tensor) or torch.equal(old, new), "your function changed its arguments"
    return result


def is_close(actual: Tensor, truth: Tensor, tolerance: float = 1e-8) -> bool:
    """Return whether two tensors agree, relative to the size of the second."""
    return bool((actual - truth).norm() <= tolerance * truth.norm().clamp(min=1e-12))


def expect_tensor(actual: Any, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> None:
    """Raise AssertionError unless ``actual`` is a finite tensor of this shape and dtype."""
    assert isinstance(actual, Tensor), f"return a torch tensor, not {type(actual).__name__} (a missing return?)"
    assert tuple(actual.shape) == tuple(shape), f"the shape must be {tuple(shape)}, yours is {tuple(actual.shape)}"
    names = [str(d).removeprefix("torch.") for d in (dtype, actual.dtype)]
    advice = "inputs are float64: do not convert" if dtype == torch.float64 else "see the function's description"
    assert actual.dtype == dtype, f"the result must be {names[0]}, yours is {names[1]}; {advice}"
    assert torch.isfinite(actual).all(), "your result holds NaN or infinity"


def expect_close(actual: Tensor, truth: Tensor, message: str) -> None:
    """Raise AssertionError with ``message`` unless both agree to rounding in float64."""
    if not is_close(actual, truth):
        accuracy = "it is right to a few digits only: was something computed in float32?"
        raise AssertionError(accuracy if is_close(actual, truth, 1e-4) else message)
