r"""Soft targets over a large vocabulary: the divergence of two softmaxes and its gradient, in two passes.

Notation: as the reference: s, t logits over T of student and teacher, p, q their softmaxes, N classes.
The first pass keeps running maxima and sums, so that no probabilities go to memory: with $a = \sum_i e^{t_i - m_t}$
and $b = \sum_i e^{t_i - m_t}(t_i - s_i)$, $\mathrm{KL}(q \Vert p) = b/a - \mathrm{lse}(t) + \mathrm{lse}(s)$; the
reverse one exchanges the roles. The second pass writes the gradient, $T(p - q)$ or $T\,p\,(\ln p - \ln q -
\mathrm{KL})$, over the number of samples.
Sources: Milakov and Gimelshein 2018, arXiv:1805.02867 (the running softmax); Hinton, Vinyals, Dean 2015,
arXiv:1503.02531.   Syllabus: 4.14, 5.06
"""

from typing import Any, no_type_check

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from mlcomp.checks import check_choice, check_dtype, check_interval
from mlcomp.context import isolated
from mlcomp.kernels.launch import INTERPRETED, check_devices, tl, triton

REFERENCE = "mlcomp.distill.soft_target_loss"
DTYPES = (torch.float32, torch.float16) if INTERPRETED else (torch.float32, torch.float16, torch.bfloat16)


@isolated
def soft_target_loss(
    student: Float[Tensor, "*batch classes"],
    teacher: Float[Tensor, "*batch classes"],
    *,
    temperature: float,
    direction: str = "forward",
) -> Float[Tensor, ""]:
    r"""Return $T^2\,\mathrm{KL}$, the mean over the batch, float32.

    Args:
        student: logits, float32, float16 or (on a GPU) bfloat16; the loss is differentiable in them, once.
        teacher: logits of the same shape, a constant: no gradient goes there.
        temperature: positive and finite.
        direction: "forward", KL(teacher ‖ student), or "reverse", KL(student ‖ teacher).
    Raises:
        ValueError: other shapes, temperature not positive and finite, no sample, unknown direction, other devices.
            TypeError: another dtype.
    Guarantee: value and gradient as the reference's in float32 to 1e-5, the gradient rounded once to the dtype of the
        student. Logits that are not finite are not looked for: the loss is NaN, where the reference raises.
    Cost: both logits are read twice, and the gradient is written once, in the forward pass; nothing of their size is
        kept but the gradient.
    """
    check_devices(student=student, teacher=teacher)
    check_dtype("student", student.dtype, DTYPES)
    check_dtype("teacher", teacher.dtype, DTYPES)
    if teacher.shape != student.shape:
        raise ValueError(
            f"teacher must be {tuple(student.shape)} like the student's logits, got {tuple(teacher.shape)}"
        )
    check_interval("temperature", temperature, "(0, inf)")
    check_choice("direction", direction, ("forward", "reverse"))
    if not student.numel():
        raise ValueError(f"student must hold at least one sample of one class, got {tuple(student.shape)}")
    return _Loss.apply(student, teacher.detach(), float(temperature), direction == "reverse")


class _Loss(torch.autograd.Function):
    """The loss, with the gradient for a loss of weight one made along with it."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: float, reverse: bool) -> Tensor:
        """Return the loss; keep the gradient, if one is wanted."""
        s, t = (x.reshape(-1, x.shape[-1]).contiguous() for x in (student, teacher))
        samples, classes = s.shape
        losses = torch.empty(samples, dtype=torch.float32, device=s.device)
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty_like(s) if wanted else losses
        block = min(4096, triton.next_power_of_2(classes))
        _kernel[(samples,)](
            s, t, losses, gradient, samples, classes, 1 / temperature, temperature, REVERSE=reverse, WANTED=wanted,
            BLOCK=block, num_warps=8 if block > 1024 else 4, enable_fp_fusion=True,
        )  # fmt: skip
        ctx.shape = student.shape
        if wanted:
            ctx.save_for_backward(gradient)
        return losses.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradient by the student's logits."""
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream[0]).to(gradient.dtype).view(ctx.shape), None, None, None


@triton.jit
@no_type_check
def _kernel(
    student_ptr, teacher_ptr, losses_ptr, gradient_ptr, samples, classes, cold, temperature, REVERSE: tl.constexpr,
    WANTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    student_ptr += row * classes
    teacher_ptr += row * classes
    # Of each lane, so that the blocks need no reduction: the running maximum, Σ e^(x − max), and Σ e^(·)(x − other).
    # Places without a class get a number whose exponential is 0 beside any logit's.
    low: tl.constexpr = -3e38
    s_max = tl.full((BLOCK,), low, tl.float32)
    t_max = tl.full((BLOCK,), low, tl.float32)
    s_sum = tl.zeros((BLOCK,), tl.float32)
    t_sum = tl.zeros((BLOCK,), tl.float32)
    mixed = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, classes, BLOCK):
        live = start + lane < classes
        s = tl.where(live, tl.load(student_ptr + start + lane, mask=live, other=0).to(tl.float32) * cold, low)
        t = tl.where(live, tl.load(teacher_ptr + start + lane, mask=live, other=0).to(tl.float32) * cold, low)
        s_new, t_new = tl.maximum(s_max, s), tl.maximum(t_max, t)
        s_old, t_old = tl.exp(s_max - s_new), tl.exp(t_max - t_new)
        s_here, t_here = tl.exp(s - s_new), tl.exp(t - t_new)
        if REVERSE:
            mixed = mixed * s_old + s_here * (s - t)
        else:
            mixed = mixed * t_old + t_here * (t - s)
        s_sum = s_sum * s_old + s_here
        t_sum = t_sum * t_old + t_here
        s_max, t_max = s_new, t_new
    s_top, t_top = tl.max(s_max, 0), tl.max(t_max, 0)
    s_scale, t_scale = tl.exp(s_max - s_top), tl.exp(t_max - t_top)
    s_all, t_all = tl.sum(s_sum * s_scale, 0), tl.sum(t_sum * t_scale, 0)
    s_lse, t_lse = s_top + tl.log(s_all), t_top + tl.log(t_all)
    if REVERSE:
        divergence = tl.sum(mixed * s_scale, 0) / s_all - s_lse + t_lse
    else:
        divergence = tl.sum(mixed * t_scale, 0) / t_all - t_lse + s_lse
    tl.store(losses_ptr + row, divergence * temperature * temperature)
    if WANTED:
        gradient_ptr += row * classes
        share = temperature / samples
        for start in range(0, classes, BLOCK):
            live = start + lane < classes
            s = tl.load(student_ptr + start + lane, mask=live, other=0).to(tl.float32) * cold - s_lse
            t = tl.load(teacher_ptr + start + lane, mask=live, other=0).to(tl.float32) * cold - t_lse
            p = tl.exp(s)
            slope = p * (s - t - divergence) if REVERSE else p - tl.exp(t)
            tl.store(gradient_ptr + start + lane, (slope * share).to(gradient_ptr.dtype.element_ty), mask=live)
