r"""AdaQuant: move the continuous weights and the steps so that, once rounded, the layer's output changes least.

Notation: W weight, V its learned shift, s learned step, z zero code, $H = 2XX^\top$;
$\min_{V, s} \lVert WX - Q_s(W + V) X \rVert^2$ with
$Q_s(w) = s\,(\mathrm{clip}(\mathrm{round}(w/s) + z, 0, 2^b-1) - z)$
and the straight-through estimator for the rounding. Unlike AdaRound, a code may move by more than one.
Source: Hubara et al. 2020, arXiv:2006.10518, eq. (2) and section 3.1; the gradient of the step is that of
Esser et al. 2020, arXiv:1902.08153, eq. (3).   Syllabus: 2.09
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import (
    check_bits,
    check_group_size,
    check_hessian,
    check_interval,
    check_weight,
    check_whole,
    narrowed,
)
from mlcomp.context import isolated
from mlcomp.quant.grid import fit_grid
from mlcomp.quant.quantized import Quantized


@isolated
def adaquant(
    weight: Float[Tensor, "out inp"],
    hessian: Float[Tensor, "inp inp"],
    *,
    bits: int,
    group_size: int | None = None,
    symmetric: bool = False,
    clip: str = "mse",
    steps: int = 500,
    learning_rate: float = 0.005,
    step_learning_rate: float = 0.003,
) -> Quantized:
    r"""Learn shifted weights and steps by Adam with the straight-through estimator.

    Args:
        weight: (out, inp), any float dtype, computed in float32 (float64 stays); not modified.
        hessian: (inp, inp), $2XX^\top$, float32 or float64; may be singular; not modified.
        bits, group_size, symmetric, clip: the grid to start from, as in :func:`mlcomp.quant.rtn`. Zero codes stay.
        steps: Adam steps; both learning rates fall linearly to 0.
        learning_rate: of V, in units of the starting step.
        step_learning_rate: of log s; 0 leaves the steps alone.
    Returns:
        codes and steps of the best iterate of each row.
    Raises:
        ValueError: bits outside 1..8, group_size does not divide inp, NaN or inf, H malformed, steps below 1.
    Guarantee: no row has a larger output error than rounding to nearest on the starting grid, which is the first
        iterate. Dead inputs get the zero code. No randomness.
    Cost: 2·out·inp² FLOPs a step, whatever the number of samples.
    Deviations: the gradient is exact (through H) instead of by batches of X; the best iterate is kept instead of the
        last, because the straight-through estimator oscillates; activations are not quantized here.
    """
    weight = check_weight(weight)
    check_bits(bits)
    check_group_size(group_size, weight.shape[1])
    hessian = check_hessian(hessian, weight.shape[1])
    check_whole("steps", steps, 1)
    check_interval("learning_rate", learning_rate, "[0, inf)")
    diagonal = hessian.diagonal()
    w = weight.to(torch.promote_types(weight.dtype, torch.float32)).masked_fill(diagonal == 0, 0)
    grid = fit_grid(w, bits=bits, group_size=group_size, symmetric=symmetric, clip=clip)
    step = grid.step.double()
    # Errors in units of the row's step, inputs in units of their mean energy: nothing depends on the units of W or X.
    scale = step.square().mean(1, keepdim=True).sqrt()
    h = (hessian / diagonal[diagonal > 0].mean()).to(w.dtype) if (diagonal > 0).any() else hessian.to(w.dtype)
    rates = learning_rate, step_learning_rate
    codes, step = _learn(w.double() / scale, step / scale, grid.zero.double(), h, 2**bits - 1, steps, rates)
    return replace(grid, step=narrowed(step * scale, w.dtype)).quantized(codes.to(torch.uint8))


def _learn(
    w: Tensor, start: Tensor, zero: Tensor, h: Tensor, top: int, steps: int, rates: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Return the best codes and steps; all in float64 but H, for the reason given in ``adaround``."""
    width = w.shape[1] // start.shape[1]
    wide_zero = zero.repeat_interleave(width, 1)
    unit = start.repeat_interleave(width, 1)
    shift, log_step = torch.zeros_like(w), torch.zeros_like(start)
    live = h.diagonal() > 0
    optimizer = torch.optim.Adam([{"params": [shift], "lr": rates[0]}, {"params": [log_step], "lr": rates[1]}])
    # Falling to 0, because the straight-through estimator never settles at a constant rate.
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1 - i / steps)
    best_codes, best_step = torch.zeros_like(w), start
    best_error: Tensor | None = None
    for _ in range(steps):
        step = start * log_step.exp()
        wide_step = step.repeat_interleave(width, 1)
        position = (w + unit * shift) / wide_step
        codes = torch.clamp(torch.round(position) + wide_zero, 0, top)
        inside = ((position + wide_zero > -0.5) & (position + wide_zero < top + 0.5)) & live
        level = codes - wide_zero
        delta = wide_step * level - w
        pull = (delta.to(h.dtype) @ h).double()
        error = (delta * pull).sum(1, keepdim=True)
        better = torch.ones_like(error, dtype=torch.bool) if best_error is None else error < best_error
        best_codes = torch.where(better, codes, best_codes)
        best_step = torch.where(better, step, best_step)
        best_error = error if best_error is None else torch.minimum(error, best_error)
        # ∂ŵ/∂V = 1 inside the range; ∂ŵ/∂log s = s·(level − position) inside and s·level where clipped.
        shift.grad = 2 * pull * unit * inside
        slope = wide_step * torch.where(inside, level - position, level)
        log_step.grad = 2 * (pull * slope).unflatten(1, (-1, width)).sum(2)
        optimizer.step()
        schedule.step()
    return best_codes, best_step
