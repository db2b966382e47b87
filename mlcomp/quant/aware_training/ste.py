r"""The straight-through estimator: round on the way forward, and pretend on the way back that nothing happened.

Notation: QW = Q(W), y = F(x, QW), $W \leftarrow W - \alpha\,\partial loss/\partial QW$: the gradient at the rounded
weights moves the real ones, which are kept beside them.
Source: Bengio, Léonard, Courville 2013, arXiv:1308.3432, section 3; Courbariaux et al. 2016, arXiv:1602.02830
(weights that are kept in floating point).   Syllabus: 1.09
"""

from typing import Any

import torch
from torch import Tensor

from mlcomp.checks import check_floating, check_values
from mlcomp.context import isolated


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        return value.clone()  # a view of an input would make autograd rewrite the graph

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


@isolated
def straight_through(x: Tensor, value: Tensor) -> Tensor:
    """Return ``value``, with the gradient of what follows passed to ``x`` unchanged.

    Args:
        x: what is learned, any shape.
        value: Q(x), of the same shape and dtype; gets no gradient.
    Raises:
        ValueError: shapes or dtypes differ. TypeError: not floating point.
    Guarantee: the result equals ``value`` bit for bit (x + (value − x).detach() may not); ∂result/∂x is the
        identity, also where Q clips.
    """
    check_floating("x", x)
    check_floating("value", value)
    if x.shape != value.shape or x.dtype != value.dtype:
        raise ValueError(f"value must be like x, {x.dtype} {tuple(x.shape)}, got {value.dtype} {tuple(value.shape)}")
    return _StraightThrough.apply(x, value.detach())


@isolated
def ste_round(x: Tensor) -> Tensor:
    """Return ``x`` rounded to whole numbers (ties to even), with the gradient of the identity.

    Raises:
        ValueError: NaN or inf. TypeError: not floating point.
    """
    check_values("x", x)
    return straight_through(x, torch.round(x.detach()))
