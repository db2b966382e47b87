r"""DistilBERT: a student made of some of the teacher's layers, trained by three losses at once.

$L = 5\,L_\mathrm{soft} + 2\,L_\mathrm{sup} + 1\,L_\mathrm{cos}$: soft targets at T = 2, times T²; cross-entropy with
the labels of the teacher's own task; $1 - \cos(h_s, h_t)$ of the last hidden states.
Source: Sanh, Debut, Chaumond, Wolf 2019, arXiv:1910.01108, sections 2 and 3; the weights, the layers and which
positions count are those of the authors' code (transformers, research_projects/distillation).   Syllabus: 4.16
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from mlcomp.checks import check_codes, check_interval, check_like, check_tensor, check_values, check_whole
from mlcomp.context import isolated, isolated_run
from mlcomp.distill.soft_targets import soft_target_loss
from mlcomp.distill.teaching import Seen, teach_along
from mlcomp.distill.train_student import Taught
from mlcomp.layerwise.fit import copy_model
from mlcomp.modes import home

IGNORED = -100  # the label of a position that the supervised loss leaves out, as PyTorch has it


def spread_layers(layers: int, keep: int) -> tuple[int, ...]:
    """Return which ``keep`` of ``layers`` layers stay: the first, the last, and even steps between, rounded.

    6 of 12 are 0, 2, 4, 7, 9, 11, those of DistilBERT. One is the first.

    Raises:
        ValueError: no layer, or more to keep than there are.
    """
    check_whole("layers", layers, 1)
    check_whole("keep", keep, 1, layers)
    return tuple((2 * i * (layers - 1) + keep - 1) // (2 * max(1, keep - 1)) for i in range(keep))


@isolated
def keep_layers(model: nn.Module, name: str, layers: Sequence[int]) -> nn.Module:
    """Return a copy of ``model`` in which only some layers of a list of equal layers are left, with their weights.

    Args:
        model: not modified. Its forward must run through the list as it is: for each of its layers in turn.
        name: of the ``nn.ModuleList`` or ``nn.Sequential``, "blocks", say.
        layers: numbers in the teacher, rising.
    Raises:
        ValueError: an unknown name, or one of another module; no layer, numbers that do not rise or do not exist.
    """
    stack = dict(model.named_modules()).get(name)
    if not isinstance(stack, nn.ModuleList | nn.Sequential):
        kinds = [n for n, m in model.named_modules() if isinstance(m, nn.ModuleList | nn.Sequential)]
        raise ValueError(f"name must be that of a list of layers, one of {kinds}, got {name!r}")
    for number in layers:
        check_whole("layers holds numbers; each", number, 0, len(stack) - 1)
    if not len(layers) or list(layers) != sorted(set(layers)):
        raise ValueError(f"layers must be one or more rising numbers, got {list(layers)}")
    result = copy_model(model)
    left = result.get_submodule(name)
    assert isinstance(left, nn.ModuleList | nn.Sequential)  # as in the model
    for number in reversed(range(len(stack))):
        if number not in layers:
            del left[number]
    return result


@isolated
def distilbert_loss(
    student: Float[Tensor, "*batch classes"],
    teacher: Float[Tensor, "*batch classes"],
    labels: Int64[Tensor, "*batch"],
    *,
    student_hidden: Float[Tensor, "*batch width"],
    teacher_hidden: Float[Tensor, "*batch width"],
    mask: Bool[Tensor, "*batch"] | None = None,
    soft: float = 5.0,
    supervised: float = 2.0,
    cosine: float = 1.0,
    temperature: float = 2.0,
) -> Float[Tensor, ""]:
    r"""Return soft · $T^2\mathrm{KL}(q \Vert p)$ + supervised · CE + cosine · $(1 - \cos(h_s, h_t))$.

    Args:
        student, teacher: logits; no gradient goes to the teacher.
        labels: right classes. −100 leaves a position out of the supervised loss: with masked words only these have
            labels, while the other two losses see all words.
        student_hidden, teacher_hidden: the states from which the logits are computed.
        mask: True at the positions that count for the soft and the cosine loss, all that hold no padding; None: all.
        soft, supervised, cosine: the weights of the losses; one with weight 0 is not computed.
        temperature: of the soft targets, positive or infinite.
    Raises:
        ValueError: NaN or inf, shapes that do not fit, a label out of range, no position in the mask, a negative
            weight.
    Returns:
        a scalar; each loss is the mean over its positions. Without any label the supervised loss is 0. The cosine
        with a zero vector is 0.
    Guarantee: 0 for equal logits and states if the supervised weight is 0; the size of the states has no influence.
    """
    for name, weight in (("soft", soft), ("supervised", supervised), ("cosine", cosine)):
        check_interval(name, weight, "[0, inf)")
    check_values("student", student)
    check_like("teacher", teacher, student.shape, "the student's logits")
    check_values("student_hidden", student_hidden)
    check_like("teacher_hidden", teacher_hidden, student_hidden.shape, "the student's")
    check_values("teacher_hidden", teacher_hidden)
    positions = student.shape[:-1]
    if not student.numel() or student_hidden.shape[:-1] != positions or not student_hidden.numel():
        shapes = f"{tuple(student.shape)} and {tuple(student_hidden.shape)}"
        raise ValueError(f"logits and hidden states must hold the same positions, at least one, got {shapes}")
    chosen = checked_labels(labels, student)
    where = slice(None) if mask is None else _checked_mask(mask, student)
    work = torch.promote_types(torch.promote_types(student_hidden.dtype, teacher_hidden.dtype), torch.float32)
    total = student_hidden.new_zeros((), dtype=work)
    if soft:
        total = total + soft * soft_target_loss(student[where], teacher[where], temperature=temperature)
    if supervised and chosen.any():
        wide = torch.promote_types(student.dtype, torch.float32)
        total = total + supervised * F.cross_entropy(student[chosen].to(wide), labels[chosen].long())
    if cosine:
        ours, theirs = student_hidden[where].to(work), teacher_hidden.detach()[where].to(work)
        total = total + cosine * (1 - F.cosine_similarity(ours, theirs, dim=-1)).mean()
    return total


@isolated_run
def distilbert(
    student: nn.Module,
    teacher: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    hidden: str,
    mask: Tensor | None = None,
    soft: float = 5.0,
    supervised: float = 2.0,
    cosine: float = 1.0,
    temperature: float = 2.0,
    epochs: int,
    lr: float,
    **options: Any,
) -> Taught:
    """Train a copy of ``student``, usually of :func:`keep_layers`, by the triple loss.

    Args:
        student, teacher: not modified; the teacher runs in eval mode, on the student's device.
        inputs: (n, …).
        labels: of the shape of the logits without the last dimension; −100 where there is none.
        hidden: name of the layer, in both, whose output is the last hidden state.
        mask, soft, supervised, cosine, temperature: as in :func:`distilbert_loss`; mask of the shape of ``labels``.
        epochs, lr, options: as for :func:`mlcomp.train.train`, but ``loss``.
    Raises:
        ValueError: no such layer, logits or states of different shapes, labels or a mask that do not fit, and what
            ``train`` refuses.
    Cost: a step runs the teacher, too; nothing of what it said is kept.
    """
    if "loss" in options:
        raise ValueError("loss is taken: it follows from soft, supervised and cosine")
    if len(labels) != len(inputs) or not len(inputs):
        raise ValueError(f"inputs and labels must have the same length ≥ 1, got {len(inputs)} and {len(labels)}")
    result = copy_model(student)
    known = labels.to(home(result))
    counts = None if mask is None else mask.to(home(result))

    def loss(seen: Seen, taught: Seen, index: Tensor) -> Tensor:
        return distilbert_loss(
            seen.logits,
            taught.logits,
            known[index],
            student_hidden=seen.features[0],
            teacher_hidden=taught.features[0],
            mask=None if counts is None else counts[index],
            soft=soft,
            supervised=supervised,
            cosine=cosine,
            temperature=temperature,
        )

    options |= {"epochs": epochs, "lr": lr}
    return Taught(result, teach_along(result, teacher, inputs, loss, names=(hidden,), **options))


def checked_labels(labels: Tensor, student: Tensor) -> Tensor:
    """Return where there are labels; raise unless they are classes of the student's, one for each position."""
    check_tensor("labels", labels)
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be whole numbers of an integer dtype, got {labels.dtype}")
    if labels.shape != student.shape[:-1]:
        shapes = f"{tuple(student.shape[:-1])}, one for each position, got {tuple(labels.shape)}"
        raise ValueError(f"labels must be {shapes}")
    check_codes("labels", labels.where(labels != IGNORED, 0), student.shape[-1] - 1)
    return labels != IGNORED


def _checked_mask(mask: Tensor, student: Tensor) -> Tensor:
    """Return the mask; raise unless it leaves at least one position."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != student.shape[:-1]:
        given = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"mask must be a boolean tensor of the positions {tuple(student.shape[:-1])}, got {given}")
    if not mask.any():
        raise ValueError("mask must leave at least one position")
    return mask
