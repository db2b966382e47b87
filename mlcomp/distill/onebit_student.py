r"""OneBit's training: a network of one-bit layers learns the outputs and the hidden states of the one it was.

Notation: $L = \mathrm{KL}(q^T \Vert p^S) + \alpha \sum_j \lVert u_j/\lVert u_j\rVert - v_j/\lVert v_j\rVert\rVert^2$,
means over the positions; u, v hidden states of teacher and student after block j. The printed cross-entropy with the
teacher's probabilities is KL plus their entropy, which no student changes: the same gradient, and 0 is reached.
Source: Xu et al. 2024, arXiv:2402.11295, section 3.4, eqs. (7) to (9).   Syllabus: 5.04
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mlcomp.checks import check_interval, check_like, check_values
from mlcomp.context import isolated, isolated_run
from mlcomp.distill.soft_targets import soft_target_loss
from mlcomp.distill.teaching import Seen, teach_along
from mlcomp.distill.train_student import Taught
from mlcomp.layerwise.fit import copy_model


@isolated
def onebit_loss(
    student: Float[Tensor, "*batch classes"],
    teacher: Float[Tensor, "*batch classes"],
    *,
    student_hidden: Sequence[Tensor],
    teacher_hidden: Sequence[Tensor],
    soft: float = 1.0,
    hidden_weight: float = 1.0,
) -> Float[Tensor, ""]:
    r"""Return soft · KL(teacher ‖ student) + hidden_weight · $\sum_j$ mean $\lVert\hat u_j - \hat v_j\rVert^2$.

    Args:
        student, teacher: logits; no gradient goes to the teacher.
        student_hidden, teacher_hidden: for each layer its states (…, width), of the same shapes in both; may be
            empty.
        soft, hidden_weight: not negative; a loss with weight 0 is not computed.
    Raises:
        ValueError: NaN or inf, other shapes, not as many layers in both, no sample, a negative weight.
    Returns:
        a scalar: sums over classes, width and layers, means over positions. A state of zeros counts as zeros.
    Guarantee: 0 for equal logits and states; the sizes of the states have no influence. A layer's term is
        2 · (1 − cos) and lies in [0, 4].
    Deviations: the paper prints a mean over positions for the logits and a sum for the states, its code 0.01 times a
        sum and a mean. Means in both keep the weights, whatever the batch: the code's is then ``hidden_weight`` 0.05
        for texts of 2048 tokens.
    """
    for name, weight in (("soft", soft), ("hidden_weight", hidden_weight)):
        check_interval(name, weight, "[0, inf)")
    value = soft_target_loss(student, teacher, temperature=1.0)  # checks the logits in any case
    if len(student_hidden) != len(teacher_hidden):
        counts = f"{len(student_hidden)} and {len(teacher_hidden)}"
        raise ValueError(f"student_hidden and teacher_hidden must hold as many layers, got {counts}")
    total = soft * value if soft else torch.zeros_like(value)
    for ours, theirs in zip(student_hidden, teacher_hidden, strict=True):
        check_values("student_hidden", ours)
        check_like("teacher_hidden", theirs, ours.shape, "the student's")
        check_values("teacher_hidden", theirs)
        if not ours.numel() or not ours.ndim:
            raise ValueError(f"hidden states must be (…, width) and hold something, got {tuple(ours.shape)}")
        if hidden_weight:
            work = torch.promote_types(torch.promote_types(ours.dtype, theirs.dtype), torch.float32)
            v, u = (F.normalize(x.to(work), dim=-1) for x in (ours, theirs.detach()))
            total = total + hidden_weight * (u - v).square().sum(-1).mean()
    return total


@isolated_run
def onebit_student(
    student: nn.Module,
    teacher: nn.Module,
    inputs: Tensor,
    *,
    hidden: Sequence[str],
    soft: float = 1.0,
    hidden_weight: float = 1.0,
    epochs: int,
    lr: float,
    **options: Any,
) -> Taught:
    """Train a copy of ``student``, of :func:`mlcomp.quant.prepare_onebit`, by its teacher. No labels are needed.

    Args:
        student, teacher: not modified; the teacher runs in eval mode, on the student's device. Both return logits.
        inputs: (n, …).
        hidden: names of the layers, in both, whose outputs are the hidden states: the blocks; may be empty.
        soft, hidden_weight: as in :func:`onebit_loss`.
        epochs, lr, options: as for :func:`mlcomp.train.train`, but ``loss``.
    Raises:
        ValueError: no such layer, logits or states of different shapes, and what ``train`` refuses.
    Cost: a step runs the teacher, too; nothing of what it said is kept.
    Deviation: the authors' code takes the states before each block, the embedding among them; here after each.
    """
    if "loss" in options:
        raise ValueError("loss is taken: it follows from soft and hidden_weight")
    result = copy_model(student)

    def loss(seen: Seen, taught: Seen, index: Tensor) -> Tensor:
        states = {"student_hidden": seen.features, "teacher_hidden": taught.features}
        return onebit_loss(seen.logits, taught.logits, **states, soft=soft, hidden_weight=hidden_weight)

    options |= {"epochs": epochs, "lr": lr}
    return Taught(result, teach_along(result, teacher, inputs, loss, names=tuple(hidden), **options))
