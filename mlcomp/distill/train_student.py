r"""Distillation: a student trained on a teacher's outputs, on labels, and on hints from its layers, in any mixture.

Notation: $L = (1 - \alpha)\,\mathrm{CE} + \alpha\,T^2\,\mathrm{KL}(q \Vert p) + \beta\,\sum L_\mathrm{hint}$.
Source: Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 2 (soft targets and labels); Romero et al. 2015,
arXiv:1412.6550, eqs. (2) and (3).   Syllabus: 3.14, 4.14
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mlcomp.checks import check_codes, check_interval
from mlcomp.context import isolated_run
from mlcomp.distill.hints import hints_loss
from mlcomp.distill.soft_targets import distillation_loss, soft_target_loss
from mlcomp.distill.teaching import Seen, look, teach
from mlcomp.layerwise.fit import copy_model
from mlcomp.modes import evaluating, home
from mlcomp.train.loop import History


@dataclass(frozen=True)
class Taught:
    """The trained student, in the mode of the original, and the history of its training."""

    model: nn.Module
    history: History


@isolated_run
def train_student(
    student: nn.Module,
    teacher: nn.Module,
    inputs: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float,
    alpha: float = 1.0,
    hints: Mapping[str, str] | None = None,
    hint_weight: float = 1.0,
    epochs: int,
    lr: float,
    **options: Any,
) -> Taught:
    """Train a copy of ``student`` by a teacher.

    Args:
        student: not modified.
        teacher: not modified; runs in eval mode, whatever mode it is in, and on the student's device. Its logits have
            the student's shape.
        inputs: (n, …).
        labels: the right classes, of the shape of the logits without the last dimension. None: the teacher's word is
            all there is, which needs ``alpha=1``.
        temperature, alpha: see :func:`mlcomp.distill.distillation_loss`. Temperature infinity compares logits.
        hints: name of the student's layer → name of the teacher's, learned along through projections that are thrown
            away; for hints first and outputs after, see :func:`mlcomp.distill.train_hints`.
        hint_weight: β, not negative.
        epochs, lr, options: as for :func:`mlcomp.train.train`, but ``loss``.
    Raises:
        ValueError: no labels although alpha is below 1, labels that do not fit, logits of different shapes, unknown
            layers, and what ``train`` refuses.
    Guarantee: with alpha 0 and no hints the same weights as ``train``, bit for bit: the teacher draws no random
        numbers.
    Cost: as for :func:`mlcomp.distill.train_hints`.
    """
    result = copy_model(student)
    history = teach_outputs(
        result,
        teacher,
        inputs,
        labels,
        temperature=temperature,
        alpha=alpha,
        hints=hints,
        hint_weight=hint_weight,
        epochs=epochs,
        lr=lr,
        **options,
    )
    return Taught(result, history)


def teach_outputs(
    student: nn.Module,
    teacher: nn.Module,
    inputs: Tensor,
    labels: Tensor | None,
    *,
    temperature: float,
    alpha: float = 1.0,
    hints: Mapping[str, str] | None = None,
    hint_weight: float = 1.0,
    **options: Any,
) -> History:
    """Train ``student`` itself, in place; all arguments as for :func:`train_student`."""
    check_interval("temperature", temperature, "(0, inf]")
    check_interval("alpha is the share of the soft targets and", alpha, "[0, 1]")
    check_interval("hint_weight", hint_weight, "[0, inf)")
    if "loss" in options:
        raise ValueError("loss is taken: it follows from temperature, alpha and hints")
    if labels is None and alpha < 1:
        raise ValueError(
            f"without labels alpha must be 1: the teacher's outputs are all there is, got alpha={alpha!r}"
        )
    if labels is not None:
        _check_labels(labels, student, inputs)
        labels = labels.to(home(student))

    def loss(seen: Seen, taught: Seen, index: Tensor) -> Tensor:
        if labels is None:
            value = soft_target_loss(seen.logits, taught.logits, temperature=temperature)
        else:
            value = distillation_loss(seen.logits, taught.logits, labels[index], temperature=temperature, alpha=alpha)
        return value + hint_weight * hints_loss(seen, taught) if hints else value

    return teach(student, teacher, inputs, loss, hints=hints, **options)[0]


def _check_labels(labels: Tensor, student: nn.Module, inputs: Tensor) -> None:
    """Raise unless there is a class of the student's for each place that it gives logits for."""
    if len(labels) != len(inputs) or len(inputs) == 0:
        raise ValueError(f"inputs and labels must have the same length ≥ 1, got {len(inputs)} and {len(labels)}")
    with evaluating(student):
        shape = look(student, (), inputs[:1].to(home(student))).logits.shape
    check_codes("labels", labels, shape[-1] - 1)
    if labels.shape[1:] != shape[1:-1]:
        raise ValueError(
            f"labels must be {(len(inputs), *shape[1:-1])}, one for each row of logits, got {tuple(labels.shape)}"
        )
