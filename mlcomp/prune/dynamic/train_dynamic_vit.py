r"""Training DynamicViT: the predictors learn from the loss through the draws, the backbone moves slowly.

Loss: cross-entropy + ½ KL(teacher ‖ student) + ½ mean square distance of the kept tokens from the teacher's +
weight · ratio loss. The teacher is the dense network before.
Source: Rao et al. 2021, arXiv:2106.02034, section 3 (training).   Syllabus: 3.12
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from mlcomp.checks import check_interval
from mlcomp.context import isolated
from mlcomp.layerwise.fit import copy_model
from mlcomp.models.vit import ViT
from mlcomp.prune.dynamic.dynamic_vit import DynamicViT
from mlcomp.prune.dynamic.token_keeping import ratio_loss
from mlcomp.train.loop import History, train


@dataclass(frozen=True)
class DynamicTraining:
    """The network that drops tokens, and the mean loss of each epoch."""

    model: DynamicViT
    history: History


@isolated
def train_dynamic_vit(
    backbone: ViT,
    inputs: Tensor,
    labels: Tensor,
    *,
    ratios: Mapping[int, float],
    epochs: int,
    lr: float = 1e-2,
    backbone_rate: float | int = 0.01,
    ratio_weight: float | int = 20.0,
    kl_weight: float | int = 0.5,
    token_weight: float | int = 0.5,
    seed: int = 0,
    **options: Any,
) -> DynamicTraining:
    """Learn which tokens to keep; return a :class:`DynamicViT` in eval mode.

    Args:
        backbone: trained; the teacher, and the start of the student. Not modified.
        inputs, labels: as for :func:`mlcomp.train.train`.
        ratios: block → share of the tokens left from there on; see :class:`DynamicViT`.
        epochs: passes over the data.
        lr: peak rate of the predictors.
        backbone_rate: the backbone's rate over that of the predictors; 0 freezes it. At 1 both move at once, and the
            predictors have nothing firm to learn from.
        ratio_weight: of the ratio loss. The paper has 2, for 30 epochs on ImageNet; over few steps a small weight
            loses against the cross-entropy, which pulls every token towards being kept.
        kl_weight, token_weight: of the two terms of distillation.
        seed: of the predictors' start, the order of the data and the draws.
        options: all others of ``train`` but ``optimizer`` and ``loss``.
    Raises:
        ValueError: a negative weight or rate, what :class:`DynamicViT` and ``train`` refuse.
    Deviation: the authors also freeze the backbone for the first five epochs.
    """
    for name, value in (("ratio_weight", ratio_weight), ("kl_weight", kl_weight), ("token_weight", token_weight)):
        check_interval(name, value, "[0, inf)")
    check_interval("backbone_rate", backbone_rate, "[0, 1]")
    model = DynamicViT(backbone, ratios, seed=seed)
    if not backbone_rate:
        model.backbone.requires_grad_(False)

    def loss(outputs: Any, target: Tensor) -> Tensor:
        student, (logits, tokens) = outputs
        total = F.cross_entropy(student.logits, target)
        total = total + kl_weight * _kl(logits, student.logits)
        kept = student.decisions[-1]
        distance = (student.tokens - tokens).square().mean(-1)
        total = total + token_weight * (kept * distance).sum() / kept.sum()
        return total + ratio_weight * ratio_loss(student.decisions, list(model.ratios.values()))

    both = _Distilled(model, backbone)
    optimizer = _two_rates(model.backbone.parameters(), backbone_rate)
    history = train(both, inputs, labels, epochs=epochs, lr=lr, seed=seed, loss=loss, optimizer=optimizer, **options)
    return DynamicTraining(model.requires_grad_(True).eval(), history)


class _Distilled(nn.Module):
    """The masked student's output beside the dense teacher's, for one batch."""

    def __init__(self, student: DynamicViT, teacher: ViT) -> None:
        super().__init__()
        self.student = student
        self.teacher = cast(ViT, copy_model(teacher)).requires_grad_(False)

    def forward(self, images: Tensor) -> Any:
        x = self.teacher.embed(images)
        for block in self.teacher.blocks:
            x = block(x)
        return self.student.decide(images), (self.teacher.classify(x), self.teacher.norm(x[:, 1:]))


def _kl(teacher: Tensor, student: Tensor) -> Tensor:
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def _two_rates(slow: Iterable[Tensor], rate: float | int) -> Callable[..., Optimizer]:
    """Return AdamW, as ``train`` takes it, with a smaller rate for some parameters."""
    slowed = {id(p) for p in slow}

    def optimizer(parameters: list[Tensor], *, lr: float, weight_decay: float) -> Optimizer:
        parts = [[p for p in parameters if (id(p) in slowed) == wanted] for wanted in (False, True)]
        groups = [{"params": part, "lr": lr * share} for part, share in zip(parts, (1, rate), strict=True) if part]
        return torch.optim.AdamW(groups, weight_decay=weight_decay)

    return optimizer
