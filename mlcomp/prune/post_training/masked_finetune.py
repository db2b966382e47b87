r"""Masked fine-tuning of one layer: its kept weights and bias learn to give the dense layer's outputs.

Notation: $W^s$ weight, M mask, $b^s$ bias; X the layer's inputs, Y the dense layer's outputs;
$L = \sum_i \lVert Y_i - (W^s \odot M) X_i - b^s \rVert^2$, a convex quadratic.
Source: Lazarevich, Kozlov, Malinin 2021, arXiv:2104.15023, eq. (6).   Syllabus: 1.21
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import (
    check_like,
    check_positive,
    check_size,
    check_tensor,
    check_values,
    check_weight,
    check_whole,
    narrowed,
)
from mlcomp.context import isolated


@dataclass(frozen=True)
class FinetunedLayer:
    """Weight (out, inp), bias (out,), and the mean squared error per output before and after."""

    weight: Tensor
    bias: Tensor
    error_before: float
    error: float


@isolated
def masked_finetune(
    weight: Float[Tensor, "out inp"],
    inputs: Float[Tensor, "inp samples"],
    targets: Float[Tensor, "out samples"],
    *,
    bias: Float[Tensor, " out"] | None = None,
    steps: int = 300,
    batch_size: int = 256,
    learning_rate: float = 0.02,
    seed: int = 0,
) -> FinetunedLayer:
    r"""Descend on the layer's output error by Adam over mini-batches; zeros of the weight stay zero.

    Args:
        weight: (out, inp), pruned: its non-zero entries are the mask; any float dtype, computed in float32 (float64
            stays); not modified.
        inputs: (inp, samples), what the layer sees: in the dense network (eq. 6), or in the pruned one, whose errors
            it then learns to undo.
        targets: (out, samples), the dense layer's outputs, its bias included.
        bias: (out,), where to start; None: 0.
        steps: Adam steps, each on ``batch_size`` samples drawn from ``seed``. 0 returns the start.
        learning_rate: in units of the root mean square of the kept weights; falls linearly to 0.
    Returns:
        the result, in the dtype of ``weight``.
    Raises:
        ValueError: NaN or inf, shapes that do not match, steps below 0, batch_size below 1, learning_rate not
            positive.
    Guarantee: never a larger error on all samples than the start: else the start is returned. Units do not matter:
        scaling the inputs (and the weight inversely), or weight, bias and targets together, scales the result.
    Cost: 4·out·inp·batch_size FLOPs a step. The optimum itself has a closed form, a least-squares problem for each
        row (:func:`mlcomp.obs.refit`); descent needs no inp×inp matrix and stops where it is told to.
    """
    _check(weight, inputs, targets, bias, steps, batch_size, learning_rate)
    work = torch.float64 if weight.dtype == torch.float64 else torch.float32
    w, x, y = (t.detach().to(work) for t in (weight, inputs, targets))
    b = torch.zeros_like(w[:, 0]) if bias is None else bias.detach().to(work)
    kept = w != 0
    # In these units the inputs have size 1, like the constant input of the bias, and the kept weights, too.
    size_x = x.square().mean().sqrt() if x.any() else x.new_ones(())
    size_w = w[kept].square().mean().sqrt() * size_x if kept.any() else w.new_ones(())
    learned = _descend(
        w * size_x / size_w, b / size_w, x / size_x, y / size_w, kept, (steps, batch_size, learning_rate, seed)
    )
    before = _error(w, b, x, y)
    candidate = (learned[0] * size_w / size_x, learned[1] * size_w)
    after = _error(*candidate, x, y)
    if not after < before:
        candidate, after = (w, b), before
    w, b = (narrowed(part, weight.dtype) for part in candidate)
    return FinetunedLayer(w, b, before, after)


def _error(w: Tensor, b: Tensor, x: Tensor, y: Tensor) -> float:
    return float((w @ x + b[:, None] - y).double().square().mean())


def _descend(
    w: Tensor, b: Tensor, x: Tensor, y: Tensor, kept: Tensor, options: tuple[int, int, float, int]
) -> tuple[Tensor, Tensor]:
    steps, batch_size, rate, seed = options
    generator = torch.Generator().manual_seed(seed)
    w, b = w.clone(), b.clone()
    optimizer = torch.optim.Adam([w, b], lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1 - i / max(1, steps))
    for _ in range(steps):
        chosen = torch.randint(x.shape[1], (min(batch_size, x.shape[1]),), generator=generator).to(x.device)
        seen = x[:, chosen]
        wrong = w @ seen + b[:, None] - y[:, chosen]
        w.grad = (wrong @ seen.T) * kept / len(chosen)
        b.grad = wrong.mean(1)
        optimizer.step()
        schedule.step()
    return w * kept, b


def _check(
    weight: Tensor, inputs: Tensor, targets: Tensor, bias: Tensor | None, steps: int, batch_size: int, rate: float
) -> None:
    check_weight(weight)
    check_size("weight", weight)
    out, inp = weight.shape
    check_tensor("inputs", inputs)
    check_tensor("targets", targets)
    if inputs.ndim != 2 or inputs.shape[0] != inp or inputs.shape[1] == 0:
        raise ValueError(f"inputs must be ({inp}, samples) with at least one sample, got {tuple(inputs.shape)}")
    if targets.shape != (out, inputs.shape[1]):
        raise ValueError(f"targets must be {(out, inputs.shape[1])}, got {tuple(targets.shape)}")
    for name, t in (("inputs", inputs), ("targets", targets)):
        check_values(name, t)
        check_size(name, narrowed(t.detach(), torch.promote_types(weight.dtype, torch.float32)))
    if bias is not None:
        check_like("bias", bias, (out,), "the weight's outputs")
    check_whole("steps", steps, 0)
    check_whole("batch_size", batch_size, 1)
    check_positive("learning_rate", rate)
