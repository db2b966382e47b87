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


@isolated
def hint_projection(
    features: Float[Tensor, "n *shape"], hint: Float[Tensor, "n *other"], *, seed: int = 0
) -> nn.Linear | nn.Conv2d:
    """Return an untrained projection of a student's features to the shape of a teacher's hint.

    Args:
        features: of the student: (n, channels), (n, length, channels) or images (n, channels, height, width).
        hint: of the teacher, for the same inputs: as many dimensions, any number of channels, all other sizes the
            same.
        seed: of its initialization; the global random state is left alone.
    Returns:
        a linear layer over the last dimension, for images a 1×1 convolution.
    Raises:
        ValueError: other numbers of dimensions, or sizes that no projection of channels could match.
    """
    for name, x in (("features", features), ("hint", hint)):
        check_values(name, x)
        if x.ndim not in (2, 3, 4) or not x.numel():
            raise ValueError(
                f"{name} must be (n, channels), (n, length, channels) or (n, channels, height, width) and hold "
                f"something, got {tuple(x.shape)}"
            )
    channel = 1 if features.ndim == 4 else features.ndim - 1
    sizes = [(*x.shape[:channel], *x.shape[channel + 1 :]) for x in (features, hint)]
    if features.ndim != hint.ndim or sizes[0] != sizes[1]:
        raise ValueError(
            f"features {tuple(features.shape)} and hint {tuple(hint.shape)} must be alike but for the channels: "
            "choose layers whose outputs have the same height and width, or length"
        )
    given, wanted = features.shape[channel], hint.shape[channel]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Conv2d(given, wanted, 1) if channel == 1 and features.ndim == 4 else nn.Linear(given, wanted)


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

    history, made = teach(
        result, teacher, inputs, loss, hints=hints, make_projection=projection, epochs=epochs, lr=lr, **options
    )
    return Hinted(result, dict(zip(hints, made, strict=True)), history)


def hints_loss(seen: Seen, taught: Seen) -> Tensor:
    """Return the sum of the hints' losses; ``seen`` is projected."""
    pairs = zip(seen.features, taught.features, strict=True)
    return torch.stack([hint_loss(ours, theirs) for ours, theirs in pairs]).sum()


def projection(features: Tensor, hint: Tensor, seed: int) -> nn.Module:
    """Return :func:`hint_projection` in the dtype of the student's features."""
    return hint_projection(features, hint, seed=seed).to(features.dtype)
