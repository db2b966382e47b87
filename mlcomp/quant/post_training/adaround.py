r"""AdaRound: learn whether each weight is rounded down or up, for the sake of the layer's output.

Notation: W weight, s step, z zero code, $H = 2XX^\top$, V the learned variables,
$h(V) = \mathrm{clip}(\sigma(V)(\zeta - \gamma) + \gamma,\, 0,\, 1)$ the rectified sigmoid, $\zeta = 1.1$,
$\gamma = -0.1$;
$\tilde W = s\,(\mathrm{clip}(\lfloor W/s \rfloor + h(V) + z,\, 0,\, 2^b - 1) - z)$ and
$\min_V \tfrac12 \mathrm{tr}(\delta H \delta^\top) + \lambda \sum (1 - |2h(V) - 1|^\beta)$ with
$\delta = \tilde W - W$.
Source: Nagel et al. 2020, arXiv:2004.10568, eq. (21)–(24).   Syllabus: 2.09
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import check_bits, check_group_size, check_hessian, check_interval, check_weight, check_whole
from mlcomp.context import isolated
from mlcomp.quant.grid import fit_grid
from mlcomp.quant.quantized import Quantized

ZETA, GAMMA = 1.1, -0.1
# The penalty's exponent falls from the first to the second number: first only weights near 0 and 1 are drawn to the
# ends, in the end all are. It is off for the first fifth of the steps, as in common
# implementations.
BETA_RANGE = (20.0, 2.0)
WARM_UP = 0.2


def rectified_sigmoid(v: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return h(V), which reaches 0 and 1 at finite V."""
    return torch.clamp(torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA, 0, 1)


def inverse_rectified_sigmoid(h: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return V with h(V) = h, for h in [0, 1]."""
    return torch.logit((h - GAMMA) / (ZETA - GAMMA))


def rounding_penalty(h: Float[Tensor, "*shape"], beta: float) -> Float[Tensor, "*shape"]:
    """Return 1 − |2h − 1|^β: 0 where h is 0 or 1, 1 where it is undecided."""
    return 1 - (2 * h - 1).abs() ** beta


def annealed_beta(progress: float) -> float | None:
    """Return β after a share ``progress`` of the steps; None during the warm-up, when there is no penalty."""
    if progress < WARM_UP:
        return None
    first, last = BETA_RANGE
    return first + (last - first) * (progress - WARM_UP) / (1 - WARM_UP)


@isolated
def adaround(
    weight: Float[Tensor, "out inp"],
    hessian: Float[Tensor, "inp inp"],
    *,
    bits: int,
    group_size: int | None = None,
    symmetric: bool = False,
    clip: str = "mse",
    scale_dtype: torch.dtype | None = None,
    steps: int = 500,
    learning_rate: float = 0.05,
    penalty: float = 2.0,
) -> Quantized:
    r"""Round each weight down or up so that the layer's output changes least.

    Args:
        weight: (out, inp), any float dtype, computed in float32 (float64 stays); not modified.
        hessian: (inp, inp), $2XX^\top$, float32 or float64; may be singular; not modified.
        bits, group_size, symmetric, clip, scale_dtype: the grid, as in :func:`mlcomp.quant.rtn`; it is not learned.
        steps: Adam steps. learning_rate: of V. penalty: λ, against an output error measured in squared steps.
    Returns:
        codes within one step of the weight, on the same grid as ``rtn`` with the same options.
    Raises:
        ValueError: bits outside 1..8, group_size does not divide inp, NaN or inf, H malformed, steps below 1.
    Guarantee: every code is the floor or the ceiling of w/s + z, clipped to the codes that exist; dead inputs get the
        zero code. No randomness: the same arguments give the same codes.
    Cost: 2·out·inp² FLOPs a step, whatever the number of samples.
    Deviations: the gradient is exact (through H) instead of by batches of X. The error of each row is divided by its
        squared step and the mean of diag(H), so λ does not depend on units. Nothing else is added: the learned
        rounding is not compared with rounding to nearest afterwards.
    """
    weight = check_weight(weight)
    check_bits(bits)
    check_group_size(group_size, weight.shape[1])
    hessian = check_hessian(hessian, weight.shape[1])
    check_whole("steps", steps, 1)
    check_interval("learning_rate", learning_rate, "[0, inf)")
    dead = hessian.diagonal() == 0
    w = weight.to(torch.promote_types(weight.dtype, torch.float32)).masked_fill(dead, 0)
    grid = fit_grid(w, bits=bits, group_size=group_size, symmetric=symmetric, clip=clip, scale_dtype=scale_dtype)
    own = grid.spread(weight.shape[1])
    position = w / own.step + own.zero
    codes = round_for_output(position, own.step, hessian, 2**bits - 1, steps, learning_rate, penalty)
    return grid.quantized(codes.to(torch.uint8))


def round_for_output(
    position: Float[Tensor, "out inp"],
    step: Float[Tensor, "out inp"],
    hessian: Float[Tensor, "inp inp"],
    top: int,
    steps: int,
    learning_rate: float,
    penalty: float,
) -> Float[Tensor, "out inp"]:
    """Return whole codes 0 … ``top`` next to ``position`` = w/s + z, learned by Adam on the exact gradient."""
    low = torch.floor(position)
    movable = (low >= 0) & (low < top) & (hessian.diagonal() > 0)
    nearest = torch.round(position).clamp(0, top)
    if not movable.any():
        return nearest
    # Errors in units of the row's step, inputs in units of their mean energy: nothing depends on the units of W or X.
    relative_step = step / step.square().mean(1, keepdim=True).sqrt()
    diagonal = hessian.diagonal()
    h = (hessian / diagonal[diagonal > 0].mean()).to(position.dtype)
    # V is float64 because Adam's running mean of a settled weight falls by 0.9 a step: in float32 it becomes
    # subnormal after some 800 steps, and arithmetic with subnormal numbers is tens of times slower.
    v = inverse_rectified_sigmoid((position - low).double())
    optimizer = torch.optim.Adam([v], lr=learning_rate)
    # The error of code low + h(V) is base + step·h(V) where a code can move, and constant elsewhere.
    reach = relative_step * movable
    base = relative_step * (torch.where(movable, low, nearest) - position)
    for i in range(steps):
        v.grad = objective_gradient(v, base, reach, h, penalty, annealed_beta(i / steps))
        optimizer.step()
    return torch.where(movable, low + (v > 0), nearest)


def objective_gradient(
    v: Float[Tensor, "out inp"],
    base: Float[Tensor, "out inp"],
    reach: Float[Tensor, "out inp"],
    h: Float[Tensor, "inp inp"],
    penalty: float,
    beta: float | None,
) -> Float[Tensor, "out inp"]:
    r"""Return the gradient in V of $\sum_{rows} e h e^\top + \lambda \sum_{reach > 0} (1 - |2h(V) - 1|^\beta)$.

    $e = base + reach \odot h(V)$. By hand, because autograd would keep and reread every intermediate matrix.
    """
    sigmoid = torch.sigmoid(v)
    up = sigmoid * (ZETA - GAMMA) + GAMMA
    slope = (ZETA - GAMMA) * sigmoid * (1 - sigmoid) * ((up > 0) & (up < 1) & (reach > 0))
    up = up.clamp(0, 1)
    gradient = 2 * reach * ((base + reach * up).to(h.dtype) @ h)
    if beta is not None:
        away = 2 * up - 1
        gradient = gradient - penalty * 2 * beta * away.abs() ** (beta - 1) * away.sign()
    return gradient * slope
