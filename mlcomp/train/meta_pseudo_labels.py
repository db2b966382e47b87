r"""Meta pseudo labels: a student learns from a teacher's pseudo-labels, the teacher from how that served the student.

Notation: $\hat y$ a pseudo-label drawn from the teacher's probabilities T(x; θ) of an unlabelled x, S the student, L
its cross-entropy on labelled samples, before ("old") and after ("new") its step on $(x, \hat y)$. The teacher's
gradient is the mean over $\hat y$ of
$$ (L_\text{old} - L_\text{new}(\hat y) - m)\,\nabla_\theta \mathrm{CE}(\hat y, T(x; θ)), $$
exactly that of the mean of $L_\text{new}(\hat y)$, for any m that does not depend on $\hat y$.
Source: Pham, Dai, Xie, Le 2021, arXiv:2003.10580, section 2, appendix A eq. (12), appendix B algorithm 1, appendix
C.3 (moving average m). Public code has new − old, the opposite sign.   Syllabus: 4.13
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from mlcomp.checks import check_codes, check_interval, check_positive
from mlcomp.context import isolated_run
from mlcomp.modes import evaluating, home, keeping_modes
from mlcomp.train.loop import batch_starts, learning_rate_share, random_batches, train
from mlcomp.train.pseudo_labels import check_labelled


@dataclass(frozen=True)
class MetaHistory:
    """What happened in each step.

    Attributes:
        gain: L_old − L_new, by how much the student's step lowered its loss on a labelled batch [nats].
        average: the moving average m that was subtracted.
        loss: mean loss of the teacher in each epoch.
    """

    gain: Float[Tensor, " steps"]
    average: Float[Tensor, " steps"]
    loss: tuple[float, ...]


@isolated_run
def meta_pseudo_labels(
    teacher: nn.Module,
    student: nn.Module,
    inputs: Shaped[Tensor, "n *shape"],
    labels: Shaped[Tensor, " n"],
    unlabelled: Shaped[Tensor, "m *shape"],
    *,
    epochs: int,
    lr: float,
    student_lr: float | None = None,
    batch_size: int = 64,
    feedback: float = 1.0,
    decay: float = 0.99,
    seed: int = 0,
    weight_decay: float = 0.0,
    optimizer: Callable[..., Optimizer] = torch.optim.AdamW,
    **options: Any,
) -> MetaHistory:
    """Train ``teacher`` and ``student``, both in place.

    A step: the teacher labels a batch of unlabelled samples by drawing from its probabilities; the student steps on
    them; the teacher steps on the cross-entropy of a labelled batch plus ``feedback`` · (gain − m) times the
    cross-entropy of what it drew. The student sees no label: train it on the labelled samples afterwards, as the
    paper does.

    Args:
        teacher, student: from inputs to logits, of the same classes; two networks on one device.
        inputs, labels: the labelled samples.
        unlabelled: of the same shape.
        epochs: passes over the unlabelled samples.
        lr, student_lr: peak learning rates, both as in :func:`mlcomp.train.train`; the student's is the teacher's
            unless given.
        batch_size: of unlabelled samples; a labelled batch has as many, or all if there are fewer.
        feedback: weight of the student's word, 0 or more for the method (0: the teacher learns from labels only); −1
            is the sign of the public code.
        decay: of the moving average m, in [0, 1]; 1 keeps m at 0. m is taken before it learns of the step's gain.
        seed, weight_decay, optimizer: as for ``train``; the last two for both networks.
        options: for ``train``: ``augment`` (the student gets what the teacher sees) and ``progress``.
    Raises:
        ValueError: before any step: shapes that do not fit, labels out of range, one network for both, bad options,
            an option that the method has taken itself.
    Guarantee: the mean of the teacher's feedback gradient over the labels that it could draw is the gradient of the
        mean of L_new, divided by the batch's size (its cross-entropy is a mean). The same arguments give the same
        weights.
    Deviation: the paper's teacher of images has a third loss (UDA), which is left out.
    Cost: a step is one of each network, a second batch for the teacher and two forward passes of the student.
    """
    if taken := sorted({"loss", "before_step", "after_step", "checkpoint"} & set(options)):
        raise ValueError(f"{', '.join(taken)} cannot be given: the method has taken it")
    check_labelled(inputs, labels, unlabelled)
    check_interval("decay", decay, "[0, 1]")
    check_interval("feedback", feedback, "(-inf, inf)")
    check_positive("student_lr", lr if student_lr is None else student_lr)
    _check_networks(teacher, student, inputs, labels)
    starts = batch_starts(len(unlabelled), batch_size)
    share = learning_rate_share(epochs * len(starts))
    own = optimizer(student.parameters(), lr=lr if student_lr is None else student_lr, weight_decay=weight_decay)
    batches = random_batches(len(inputs), batch_size, seed=seed)
    lesson = _Lesson(teacher, student, own, share, (inputs, labels.long()), batches, feedback, decay)
    none = torch.zeros(len(unlabelled), dtype=torch.int64, device="cpu")
    options |= {"seed": seed, "weight_decay": weight_decay, "optimizer": optimizer, "batch_size": batch_size}
    with keeping_modes(student):
        history = train(_Seen(teacher), unlabelled, none, epochs=epochs, lr=lr, loss=lesson, **options)
    gain, average = torch.tensor(lesson.steps, dtype=torch.float64, device="cpu").T
    return MetaHistory(gain, average, history.loss)


def student_gain(
    student: nn.Module, optimizer: Optimizer, batch: Tensor, drawn: Tensor, inputs: Tensor, labels: Tensor
) -> float:
    """Let the student step on the drawn labels; return its loss on labelled samples before minus after."""
    with evaluating(student):
        old = F.cross_entropy(student(inputs), labels)
    student.train()
    loss = F.cross_entropy(student(batch), drawn)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with evaluating(student):
        new = F.cross_entropy(student(inputs), labels)
    return float(old.double() - new.double())


class _Seen(nn.Module):
    """The teacher; it returns the batch, too, which may be augmented and is what the student learns from."""

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        return self.teacher(batch), batch


@dataclass
class _Lesson:
    """The teacher's loss on a batch, for which the student takes a step."""

    teacher: nn.Module
    student: nn.Module
    optimizer: Optimizer
    share: Callable[[int], float]
    labelled: tuple[Tensor, Tensor]
    batches: Iterator[Tensor]
    feedback: float
    decay: float

    def __post_init__(self) -> None:
        self.steps: list[tuple[float, float]] = []
        self.average = 0.0
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]

    def __call__(self, seen: Any, _: Tensor) -> Tensor:
        logits, batch = seen
        drawn = logits.detach().softmax(1).multinomial(1)[:, 0]  # from the generator that the loop seeds
        chosen = next(self.batches)
        x, y = (part[chosen].to(batch.device) for part in self.labelled)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * self.share(len(self.steps))
        gain = student_gain(self.student, self.optimizer, batch, drawn, x, y)
        coefficient = self.feedback * (gain - self.average)
        self.steps.append((gain, self.average))
        self.average = self.decay * self.average + (1 - self.decay) * gain
        return F.cross_entropy(self.teacher(x), y) + coefficient * F.cross_entropy(logits, drawn)


def _check_networks(teacher: nn.Module, student: nn.Module, inputs: Tensor, labels: Tensor) -> None:
    if {id(p) for p in teacher.parameters()} & {id(p) for p in student.parameters()}:
        raise ValueError("teacher and student must be two networks, these share parameters")
    shapes = []
    for model in (teacher, student):
        device = home(model)
        with evaluating(model):
            shapes.append(tuple(model(inputs[:1].to(device)).shape))
    if shapes[0] != shapes[1] or len(shapes[0]) != 2:
        raise ValueError(f"teacher and student must give logits (n, classes) of the same classes, got {shapes}")
    check_codes("labels", labels, shapes[0][1] - 1)
