"""A student that trains beside its teacher: what both make of a batch, at their outputs and at named layers.

The loop is :func:`mlcomp.train.train`. Its "labels" are the numbers of the inputs, by which the loss finds what the
teacher said of them. The teacher runs once over all inputs, or on each batch where that one is augmented: it must see
what the student sees.   Syllabus: 3.14, 3.15
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mlcomp.distill.hint_projection import hint_projection
from mlcomp.layerwise.running import hooked
from mlcomp.modes import evaluating, home, keeping_modes
from mlcomp.train.loop import History, train


@dataclass(frozen=True)
class Seen:
    """The logits of a batch, and the outputs of the named layers, in their order."""

    logits: Tensor
    features: tuple[Tensor, ...]

    def at(self, index: Tensor) -> "Seen":
        """Return the samples of these numbers."""
        return Seen(self.logits[index], tuple(x[index] for x in self.features))


def look(model: nn.Module, names: tuple[str, ...], batch: Tensor) -> Seen:
    """Run ``model`` on a batch; return its output and those of the named layers."""
    found: dict[str, Tensor] = {}

    def watch(name: str) -> RemovableHandle:
        def keep(module: nn.Module, args: tuple, output: Any) -> None:
            if not isinstance(output, Tensor):
                raise ValueError(f"layer {name!r} returns {type(output).__name__}, and a hint must be one tensor")
            found[name] = output

        return model.get_submodule(name).register_forward_hook(keep)

    with hooked([watch(name) for name in names]):
        logits = model(batch)
    if not isinstance(logits, Tensor):
        raise ValueError(f"{type(model).__name__} must return its logits, one tensor, got {type(logits).__name__}")
    if silent := [name for name in names if name not in found]:
        raise ValueError(f"layer(s) {silent} were not called, so they have no output to learn from")
    return Seen(logits, tuple(found[name] for name in names))


class Pupil(nn.Module):
    """The student with a projection behind each hinted layer; a teacher that runs along is none of its modules."""

    def __init__(self, student: nn.Module, names: tuple[str, ...], projections: list[nn.Module]) -> None:
        super().__init__()
        self.student, self.names = student, names
        self.projections = nn.ModuleList(projections)
        self.teacher: tuple[nn.Module, tuple[str, ...]] | None = None

    def forward(self, batch: Tensor) -> tuple[Seen, Seen | None]:
        """Return what the student makes of the batch, its features projected, and the teacher, if it runs along."""
        seen = look(self.student, self.names, batch)
        projected = tuple(p(x) for p, x in zip(self.projections, seen.features, strict=True))
        taught = None
        if self.teacher is not None:
            with torch.no_grad():
                taught = look(*self.teacher, batch)
        return Seen(seen.logits, projected), taught


def teach(
    student: nn.Module,
    teacher: nn.Module,
    inputs: Tensor,
    loss: Callable[[Seen, Seen, Tensor], Tensor],
    *,
    hints: Mapping[str, str] | None = None,
    **options: Any,
) -> tuple[History, list[nn.Module]]:
    """Train ``student`` in place; return the history and the projections.

    Args:
        loss: ``loss(student's, teacher's, numbers of the inputs)``, a scalar mean.
        hints: name of the student's layer → name of the teacher's.
        options: of :func:`mlcomp.train.train`.
    """
    hints = {} if hints is None else dict(hints)
    names, sources = tuple(hints), tuple(hints.values())
    _check(((student, names), (teacher, sources)), inputs)
    device = home(student)
    with keeping_modes(teacher):
        teacher.eval()
        with evaluating(student):
            few = inputs[:2].to(device)
            ours, theirs = look(student, names, few), look(teacher, sources, few)
        check_same_classes(ours.logits, theirs.logits)
        pairs = zip(ours.features, theirs.features, strict=True)
        seed = options.get("seed", 0)
        made: list[nn.Module] = [hint_projection(a, b, seed=seed + i).to(a) for i, (a, b) in enumerate(pairs)]
        pupil = Pupil(student, names, made)
        said = None
        if options.get("augment") is None:
            said = everything(teacher, sources, inputs, options.get("batch_size", 64), device)
        else:
            pupil.teacher = (teacher, sources)

        def of_batch(both: Any, index: Tensor) -> Tensor:
            seen, taught = both
            return loss(seen, said.at(index) if said is not None else taught, index)

        history = train(pupil, inputs, torch.arange(len(inputs), device="cpu"), loss=of_batch, **options)
    return history, made


def teach_along(
    student: nn.Module,
    teacher: nn.Module,
    inputs: Tensor,
    loss: Callable[[Seen, Seen, Tensor], Tensor],
    *,
    names: tuple[str, ...],
    **options: Any,
) -> History:
    """Train ``student`` in place by a teacher that runs with each batch; nothing of what it said is kept.

    Args:
        loss: as for :func:`teach`; one sample is tried before the first step.
        names: layers, in both, whose outputs the loss sees.
        options: of :func:`mlcomp.train.train`.
    """
    _check(((student, names), (teacher, names)), inputs)
    pupil = Pupil(student, names, [nn.Identity() for _ in names])
    pupil.teacher = (teacher, names)

    def of_batch(both: Any, index: Tensor) -> Tensor:
        seen, taught = both
        return loss(seen, taught, index)

    with keeping_modes(teacher):
        teacher.eval()
        with evaluating(student):
            few = inputs[:1].to(home(student))
            of_batch(pupil(few), torch.zeros(1, dtype=torch.int64, device=few.device))  # what does not fit shows here
        return train(pupil, inputs, torch.arange(len(inputs), device="cpu"), loss=of_batch, **options)


def _check(models: Iterable[tuple[nn.Module, tuple[str, ...]]], inputs: Tensor) -> None:
    """Raise unless each model has the layers of these names, and there is a sample."""
    for model, layers in models:
        if unknown := [name for name in layers if name not in dict(model.named_modules())]:
            raise ValueError(f"{type(model).__name__} has no layer {unknown[0]!r}")
    if len(inputs) == 0:
        raise ValueError("inputs holds no sample")


def everything(
    teacher: nn.Module, names: tuple[str, ...], inputs: Tensor, batch_size: int, device: torch.device
) -> Seen:
    """Return what the teacher, in eval mode, says of all inputs."""
    with torch.no_grad():
        parts = [look(teacher, names, batch.to(device)) for batch in inputs.split(batch_size)]
    return Seen(
        torch.cat([part.logits for part in parts]),
        tuple(torch.cat(features) for features in zip(*(part.features for part in parts), strict=True)),
    )


def check_same_classes(student: Tensor, teacher: Tensor) -> None:
    """Raise unless both answer in the same shape."""
    if student.shape != teacher.shape:
        shapes = f"{tuple(student.shape[1:])} and {tuple(teacher.shape[1:])}"
        raise ValueError(f"student and teacher must give logits of the same shape for an input, got {shapes}")
