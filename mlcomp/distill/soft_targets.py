r"""Soft targets: a student learns the teacher's probabilities, both softened by a temperature.

Notation: $z_t, z_s$ logits of teacher and student, N classes, T temperature; $q = \mathrm{softmax}(z_t/T)$,
$p = \mathrm{softmax}(z_s/T)$. The forward divergence is KL(teacher ‖ student) = Σ q log(q/p), the reverse one
KL(student ‖ teacher) = Σ p log(p/q).
Source: Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 2, eqs. (1) to (4).   Syllabus: 3.14, 4.14
"""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from mlcomp.checks import check_choice, check_codes, check_interval, check_like, check_values
from mlcomp.context import isolated


@isolated
def soft_targets(logits: Float[Tensor, "*batch classes"], *, temperature: float) -> Float[Tensor, "*batch classes"]:
    """Return softmax(logits / temperature), float32 (float64 stays).

    Args:
        logits: of teacher or student; at least one class.
        temperature: positive. 1 gives the network's own probabilities, infinity the same for all classes.
    Raises:
        ValueError: NaN or inf, another temperature, no class.
    """
    z = _logits("logits", logits)
    check_interval("temperature", temperature, "(0, inf]")
    return (z / temperature).softmax(-1)


@isolated
def soft_target_loss(
    student: Float[Tensor, "*batch classes"],
    teacher: Float[Tensor, "*batch classes"],
    *,
    temperature: float,
    direction: str = "forward",
) -> Float[Tensor, ""]:
    r"""Return $T^2\,\mathrm{KL}(q \Vert p)$, the mean over the batch.

    Args:
        student: logits; the loss is differentiable in them.
        teacher: logits of the same shape, a constant: no gradient goes there.
        temperature: positive. Infinity is the limit, half the mean over classes of $(z_s - z_t)^2$, where both are
            centred: each sample's logits minus their mean.
        direction: "forward", KL(teacher ‖ student), as in the paper, or "reverse", KL(student ‖ teacher).
    Returns:
        a scalar: the sum over classes, the mean over all else. PyTorch calls that "batchmean" for a matrix; its
        "mean" divides by the number of classes, too.
    Raises:
        ValueError: NaN or inf, other shapes, temperature not positive, no sample, unknown direction.
    Guarantee: the forward gradient by the student's logits is $T(p - q)$ over the size of the batch, for T → ∞
        $(z_s - z_t)/N$ of centred logits: it keeps its size, which is what T² is for. 0 for logits that differ by a
        constant. Computed in float32 unless float64: there the value, not the gradient, is lost to rounding beyond
        T = 1000 or so, where infinity says the same.
    """
    s, t = _logits("student", student), _logits("teacher", teacher).detach()
    check_like("teacher", teacher, student.shape, "the student's logits")
    check_interval("temperature", temperature, "(0, inf]")
    check_choice("direction", direction, ("forward", "reverse"))
    if not s.numel():
        raise ValueError(f"student must hold at least one sample, got {tuple(student.shape)}")
    if temperature == math.inf:
        difference = (s - s.mean(-1, keepdim=True)) - (t - t.mean(-1, keepdim=True))
        return 0.5 * difference.square().mean()
    log_p, log_q = (s / temperature).log_softmax(-1), (t / temperature).log_softmax(-1)
    target, other = (log_q, log_p) if direction == "forward" else (log_p, log_q)
    return temperature**2 * (target.exp() * (target - other)).sum(-1).mean()


@isolated
def distillation_loss(
    student: Float[Tensor, "*batch classes"],
    teacher: Float[Tensor, "*batch classes"],
    labels: Int64[Tensor, "*batch"],
    *,
    temperature: float,
    alpha: float,
) -> Float[Tensor, ""]:
    r"""Return $(1 - \alpha)\,\mathrm{CE} + \alpha\,T^2\,\mathrm{KL}(q \Vert p)$, the mean over the batch.

    Args:
        student, teacher, temperature: as in :func:`soft_target_loss`.
        labels: the right class of each sample, 0 to classes − 1; the cross-entropy is at T = 1.
        alpha: in [0, 1]; 0 is training on labels, 1 needs none.
    Raises:
        ValueError: as :func:`soft_target_loss`; labels of another shape or out of range; alpha outside [0, 1].
    """
    check_interval("alpha is the share of the soft targets and", alpha, "[0, 1]")
    s = _logits("student", student)
    check_codes("labels", labels, student.shape[-1] - 1)
    if labels.shape != student.shape[:-1]:
        raise ValueError(f"labels must be {tuple(student.shape[:-1])} like the samples, got {tuple(labels.shape)}")
    soft = soft_target_loss(student, teacher, temperature=temperature)
    hard = F.cross_entropy(s.reshape(-1, s.shape[-1]), labels.reshape(-1).long())
    return (1 - alpha) * hard + alpha * soft


def _logits(name: str, x: Tensor) -> Tensor:
    """Return ``x`` in the dtype it is computed in."""
    check_values(name, x)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"{name} must be (…, classes) with at least one class, got {tuple(x.shape)}")
    return x if x.dtype == torch.float64 else x.float()
