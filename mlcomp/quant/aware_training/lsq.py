r"""Learned step size quantization (LSQ): the grid's step is a parameter with a gradient of its own.

Notation: v values, s step, codes $-Q_N \dots Q_P$ (low … high), $\bar v = \mathrm{round}(\mathrm{clip}(v/s))$,
$\hat v = s\,\bar v$. Gradients (eq. 3 and 5):
$\partial\hat v/\partial s = \bar v - v/s$ where $-Q_N < v/s < Q_P$, $-Q_N$ or $Q_P$ where it is clipped;
$\partial\hat v/\partial v = 1$ inside and 0 outside. Gradient scale $g = 1/\sqrt{N Q_P}$, N values a step.
Source: Esser et al. 2020, arXiv:1902.08153, eq. (1)-(5), sections 2.1 and 2.2.   Syllabus: 1.09
"""

import math
from typing import Any

import torch
from torch import Tensor

from mlcomp.checks import check_tensor, check_values, narrowed
from mlcomp.context import isolated


class _LSQ(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, step: Tensor, low: int, high: int, gradient_scale: float) -> Tensor:
        ctx.save_for_backward(v, step)
        ctx.low, ctx.high, ctx.gradient_scale = low, high, gradient_scale
        return torch.round((v / step).clamp(low, high)) * step

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        v, step = ctx.saved_tensors
        ratio = v / step
        inside = (ratio > ctx.low) & (ratio < ctx.high)
        to_step = None
        if ctx.needs_input_grad[1]:
            slope = torch.where(inside, torch.round(ratio) - ratio, ratio.clamp(ctx.low, ctx.high))
            to_step = (gradient * slope).sum_to_size(step.shape) * ctx.gradient_scale
        return gradient * inside, to_step, None, None, None


@isolated
def lsq_quantize(v: Tensor, step: Tensor, *, low: int, high: int, count: int | None = None) -> Tensor:
    r"""Return $\hat v$, differentiable in ``v`` and ``step`` by LSQ's rules.

    Args:
        v: any shape.
        step: positive, one for all or one for each slice (broadcast against ``v``).
        low, high: the least and the largest code, low ≤ 0 < high: 0 … 2^b − 1 for values that are never negative,
            −2^(b−1) … 2^(b−1) − 1 else.
        count: N of the gradient scale: the weights of a step, or the features of one sample. None: all values of
            ``v`` that share a step.
    Raises:
        ValueError: no code on the positive side (one signed bit), NaN or inf, a step that is not positive.
            TypeError: not floating point.
    Guarantee: the values are those of rounding to nearest (ties to even); nothing else depends on ``count``.
    """
    if not (low <= 0 < high):
        raise ValueError(f"codes must run from low ≤ 0 to high ≥ 1, got {low} … {high}")
    check_values("v", v)
    check_values("step", step)
    narrowed(step.detach(), v.dtype)  # in which a single step is taken
    if v.numel() == 0 or step.numel() == 0:
        raise ValueError(f"v and step must have entries, got shapes {tuple(v.shape)} and {tuple(step.shape)}")
    if not (step.detach() > 0).all():
        raise ValueError(f"step must be positive, got a minimum of {float(step.detach().min()):.3g}")
    count = v.numel() // step.numel() if count is None else count
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    return _LSQ.apply(v, step, low, high, 1 / math.sqrt(count * high))


@isolated
def lsq_initial_step(v: Tensor, *, high: int, dim: int | None = None) -> Tensor:
    r"""Return the paper's start, $2\,\overline{|v|}/\sqrt{Q_P}$, of all values or of each slice along ``dim``.

    Zeros give step 1, which represents them exactly.

    Raises:
        ValueError: no values, NaN or inf, a step beyond the dtype of ``v``. TypeError: not floating point.
    """
    check_tensor("v", v)
    if v.numel() == 0:
        raise ValueError(f"v must have at least one entry, got shape {tuple(v.shape)}")
    check_values("v", v)
    size = v.detach().abs().to(torch.promote_types(v.dtype, torch.float32))
    mean = size.mean() if dim is None else size.mean(dim, keepdim=True)
    step = narrowed(2 * mean / math.sqrt(high), v.dtype)
    return torch.where(step > 0, step, torch.ones_like(step))
