r"""Hints: a layer of the student learns, through a projection, to say what a layer of the teacher says.

Notation: $u$ output of the teacher's hint layer, $v$ of the student's guided layer, r the projection (regressor): a
linear map of v's channels to u's, a 1×1 convolution where they are images.
$L = \frac12\,\mathrm{mean}\,(r(v) - u)^2$.
Source: Romero et al. 2015, arXiv:1412.6550, section 2.2, eq. (3), and algorithm 1.   Syllabus: 3.14
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mlcomp.checks import check_like, check_values
from mlcomp.context import isolated, isolated_run
from mlcomp.distill.teaching import Seen, teach
from mlcomp.layerwise.fit import copy_model
from mlcomp.train.loop import History


@dataclass(frozen=True)
class Hinted:
    """The student, its projections by the name of the guided layer, and the history of the training."""

    model: nn.Module
    projections: dict[str, nn.Module]
    history: History


@isolated
def hint_loss(projected: Float[Tensor, "*shape"], hint: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    r"""Return $\frac12\,\mathrm{mean}\,(r(v) - u)^2$, differentiable in the student's ``projected`` features alone.

    Raises:
        ValueError: NaN or inf, other shapes, nothing in them.
    Deviation: the paper sums over the features of a sample. With the mean the weight of the hint need not change with
        the layer's size.
    """
    check_values("projected", projected)
    check_like("hint", hint, projected.shape, "the projected features")
    check_values("hint", hint)
    if not projected.numel():
        raise ValueError(f"projected must hold at least one feature, got {tuple(projected.shape)}")
    work = torch.promote_types(torch.promote_types(projected.dtype, hint.dtype), torch.float32)
    return 0.5 * (projected.to(work) - hint.detach().to(work)).square().mean()


@isolated_run
def train_hints(
    student: nn.Module,
    teacher: nn.Module,
    inputs: Tensor,
    *,
    hints: Mapping[str, str],
    epochs: int,
    lr: float,
    **options: Any,
) -> Hinted:
    """Train the layers of a student up to its guided ones, by hints alone: the first stage of FitNets.

    The second is :func:`mlcomp.distill.train_student`, from the student that this returns.

    Args:
        student, teacher: not modified; on the same device.
        inputs: (n, …); no labels are needed.
        hints: name of the student's guided layer → name of the teacher's hint layer. With several, their losses are
            added.
        epochs, lr, options: as for :func:`mlcomp.train.train`, but ``labels`` and ``loss``.
    Returns:
        the trained copy of the student; its layers after the guided ones are as they were.
    Raises:
        ValueError: no hint, an unknown layer, shapes that no projection matches, and what ``train`` refuses.
    Deviation: the projection has no nonlinearity; the paper gives it that of the hint layer.
    Cost: a pass of the teacher over ``inputs``, whose hints are kept (with ``augment`` one in each step, and nothing
        kept), and the training of the student.
    """
    if not hints:
        raise ValueError("hints names no layer: give {name of the student's layer: name of the teacher's}")
    if "loss" in options:
        raise ValueError("loss is taken: it is the hints'")
    result = copy_model(student)

    def loss(seen: Seen, taught: Seen, index: Tensor) -> Tensor:
        return hints_loss(seen, taught)

    history, made = teach(result, teacher, inputs, loss, hints=hints, epochs=epochs, lr=lr, **options)
    return Hinted(result, dict(zip(hints, made, strict=True)), history)


def hints_loss(seen: Seen, taught: Seen) -> Tensor:
    """Return the sum of the hints' losses; ``seen`` is projected."""
    pairs = zip(seen.features, taught.features, strict=True)
    return torch.stack([hint_loss(ours, theirs) for ours, theirs in pairs]).sum()
