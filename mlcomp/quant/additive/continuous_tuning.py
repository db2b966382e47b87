r"""Tuning in rounds, and what most rounds are made of: Adam on codebooks, scales, norms and biases, the codes fixed.

Notation: θ the continuous parameters of a network with additive codes, φ(θ) the loss; a round is some steps, after
which φ is taken over all inputs.
Source: Egiazarian et al. 2024, arXiv:2401.06118, Algorithm 1, lines 16–20; the P step of Malinovskii et al. 2024,
arXiv:2405.14852, Algorithm 2.   Syllabus: 1.13, 1.15
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mlcomp.checks import check_interval, check_positive, check_whole
from mlcomp.quant.additive.additive_student import AdditiveStudent
from mlcomp.train.loop import random_batches


def tune_in_rounds(
    student: AdditiveStudent,
    parts: Sequence[Callable[[], None]],
    *,
    rounds: int,
    tolerance: float | None,
) -> list[float]:
    """Go through ``parts`` once a round, leave the student in its best state, and return the losses on all inputs.

    Args:
        student: changed in place.
        parts: each changes the student.
        rounds: at the most.
        tolerance: stop after a round that lowered the loss by less than this share; None: make all rounds.
    Returns:
        The loss before the first and after each round; the student's own is the least of them.
    """
    best, state = student.mean_loss(), student.state()
    history = [best]
    for _ in range(rounds):
        for part in parts:
            part()
        history.append(student.mean_loss())
        if history[-1] < best:
            best, state = history[-1], student.state()
        if tolerance is not None and history[-1] > (1 - tolerance) * history[-2]:
            break
    student.restore(state)
    return history


class AdamSteps:
    """So many steps of Adam on the student's continuous parameters, on its batches in random order."""

    def __init__(
        self, student: AdditiveStudent, *, steps: int, learning_rate: float, latent: Sequence[nn.Parameter] = ()
    ) -> None:
        self.student, self.steps = student, steps
        self.optimizer = student.optimizer(learning_rate, latent)
        self.batches = random_batches(len(student.inputs), student.batch_size, seed=student.seed)

    def __call__(self) -> None:
        """Make the steps of a round."""
        for _ in range(self.steps):
            self.step(next(self.batches))

    def step(self, chosen: Tensor) -> None:
        """Make one step on the ``chosen`` samples."""
        with torch.enable_grad():  # whatever the caller has set
            loss = self.student.batch_loss(self.matrices(), *self.student.batch(chosen))
            self.optimizer.zero_grad()
            loss.backward()
        self.optimizer.step()

    def matrices(self) -> list[Tensor]:
        """Return the weights of the forward pass, by which the gradients come back."""
        return self.student.decoded()


def check_rounds(*, rounds: int, steps: int, learning_rate: float, tolerance: float | None) -> None:
    """Raise ValueError unless these options of tuning in rounds make sense."""
    check_whole("rounds", rounds, 0)
    check_whole("steps", steps, 1)
    check_positive("learning_rate", learning_rate)
    if tolerance is not None:
        check_interval("tolerance", tolerance, "[0, 1)")
