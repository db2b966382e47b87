r"""LDLQ: rounding with the linear feedback that an LDL decomposition of H gives, QuIP's view of GPTQ.

Notation: W weight, Ŵ its rounded form, $H = 2XX^\top$, $H = (\dot U + I)\,D\,(\dot U + I)^\top$ with $\dot U$
strictly upper triangular and D ≥ 0 diagonal (block triangular and block diagonal for vector rounding), Q a rounding
to the nearest whole number or a stochastic one.
$\hat W_k = Q(W_k + (W - \hat W)\,\dot U_k)$, columns from first to last: column k of $\dot U$ is zero from row k on,
so only finished columns feed back. The final loss is $\tfrac12\mathrm{tr}(\eta D \eta^\top)$ with η the errors that Q
itself made: on an unbounded grid of step s, and errors spread evenly over it, $s^2\,\mathrm{tr}(D)/24$ a row, where
plain rounding has $s^2\,\mathrm{tr}(H)/24$ (with the paper's loss, $\delta H\delta^\top$ without the half, twelfths).
Source: Chee et al. 2023, QuIP, arXiv:2307.13304, eq. (2), (3), Theorems 1 and 6; in blocks: Tseng et al. 2024,
arXiv:2402.04396, section 4.1.   Syllabus: 1.14
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import check_bits, check_choice, check_divides, check_hessian, check_weight
from mlcomp.context import isolated
from mlcomp.layerwise.column_sweep import check_sweep, column_order
from mlcomp.layerwise.hessian import damped_hessian
from mlcomp.quant.grid import fit_grid
from mlcomp.quant.quantized import Quantized

ROUNDINGS = ("nearest", "stochastic")


@isolated
def ldl(
    hessian: Float[Tensor, "inp inp"], *, width: int = 1, summed_in: torch.dtype | None = None
) -> tuple[Float[Tensor, "inp inp"], Float[Tensor, "blocks width width"]]:
    r"""Return $\dot U$ and the blocks of D, float64, with $H = (\dot U + I)\,D\,(\dot U + I)^\top$.

    Args:
        hessian: (inp, inp), symmetric positive definite, float32 or float64; not modified.
        width: side of the blocks of D; must divide ``inp``. 1 is the usual LDL decomposition.
        summed_in: dtype in which $XX^\top$ was summed, whose rounding hides a singular H. None: H's own.
    Raises:
        ValueError: H malformed, or not positive definite beyond that rounding; width does not divide.
    Guarantee: the product is H up to float64 rounding; tr(D) ≤ tr(H).
    Cost: 5/3·inp³ FLOPs.
    """
    hessian = check_hessian(hessian)
    inp = len(hessian)
    check_divides("width", width, inp)
    h = hessian.double()
    h = (h + h.T) / 2
    # Cholesky from the last column to the first: flipped, H = R·Rᵀ with R upper triangular.
    lower, info = torch.linalg.cholesky_ex(h.flip(0, 1))
    upper = lower.flip(0, 1)
    # The same test as inverse_hessian's: what float rounding leaves of a zero eigenvalue is not a pivot to divide by.
    noise = max(10 * torch.finfo(summed_in or hessian.dtype).eps, inp * torch.finfo(h.dtype).eps)
    eye = torch.eye(inp, dtype=h.dtype, device=h.device)
    if not int(info):
        inverse_diagonal = torch.linalg.solve_triangular(upper, eye, upper=True).square().sum(0)
    if int(info) or not float((inverse_diagonal * h.diagonal()).sum()) * noise < 1:
        raise ValueError(f"the Hessian of {inp} inputs is singular: damp it, or use more calibration samples")
    blocks = torch.stack([upper[i : i + width, i : i + width] for i in range(0, inp, width)])
    unit = torch.linalg.solve_triangular(torch.block_diag(*blocks), upper, upper=True, left=False)
    feedback = unit - eye
    for i in range(0, inp, width):
        feedback[i : i + width, i : i + width] = 0  # exact zeros where rounding left 1e-17
    return feedback, blocks @ blocks.mT


def feedback_rounding(
    weight: Float[Tensor, "out inp"],
    feedback: Float[Tensor, "inp inp"],
    choose: Callable[[int, Tensor], Tensor],
    *,
    width: int = 1,
    block_size: int = 128,
) -> Float[Tensor, "out inp"]:
    r"""Return Ŵ with $\hat W_k = Q(W_k + (W - \hat W)\,\dot U_k)$, k from first to last, ``width`` columns at a time.

    Args:
        weight: (out, inp); not modified.
        feedback: $\dot U$, (inp, inp) float64, zero from row k on in the block of columns that begins at k.
        choose: Q; ``choose(k, goal)`` is called once for each k = 0, width, … in order with goal (width, out), and
            returns the values for columns k … k + width − 1, (width, out).
        width: columns that are chosen together; must divide ``inp``.
        block_size: columns whose feedback from all columns before the block is one matrix product; speed only.
    Guarantee: block_size changes the result by float64 rounding only.
    Cost: out·inp² FLOPs and the calls of Q.
    """
    w = weight.double().T.contiguous()  # a column of W is a contiguous row
    error = torch.zeros_like(w)
    inp = len(w)
    size = max(width, block_size // width * width)
    for start in range(0, inp, size):
        end = min(start + size, inp)
        goals = w[start:end] + feedback[:start, start:end].T @ error[:start]
        for k in range(start, end, width):
            stop = k + width
            goal = goals[k - start : stop - start] + feedback[start:k, k:stop].T @ error[start:k]
            error[k:stop] = w[k:stop] - choose(k, goal)
    return (w - error).T


@isolated
def ldlq_round(
    weight: Float[Tensor, "out inp"],
    hessian: Float[Tensor, "inp inp"],
    *,
    low: Tensor | float | int | None = None,
    high: Tensor | float | int | None = None,
    rounding: str = "nearest",
    generator: torch.Generator | None = None,
    block_size: int = 128,
) -> Float[Tensor, "out inp"]:
    r"""Round W to whole numbers with LDLQ: the paper's setting, W in units of the grid's step.

    Args:
        weight: (out, inp), [steps]; not modified.
        hessian: (inp, inp), positive definite; not modified.
        low: smallest whole number of the grid, one or (out,). None: no end on this side.
        high: the largest.
        rounding: "nearest" (ties to even) or "stochastic" (up with the probability of the fraction: unbiased).
        generator: for "stochastic"; on the weight's device.
        block_size: columns per matrix product; speed only.
    Returns:
        (out, inp) float64, whole numbers.
    Raises:
        ValueError: malformed weight, H or option; H singular; "stochastic" without a generator.
    Guarantee: without ends and with "nearest", η = (Ŵ − W)(U̇ + I) is at most ½ everywhere, so that δHδᵀ = ηDηᵀ is at
        most tr(D)/4 in each row.
    """
    weight = check_weight(weight)
    check_rounding(rounding, generator)
    hessian = check_hessian(hessian, weight.shape[1])
    check_sweep("natural", block_size)
    feedback, _ = ldl(hessian)
    return _round(weight, feedback, low, high, generator if rounding == "stochastic" else None, block_size)


@isolated
def ldlq(
    weight: Float[Tensor, "out inp"],
    hessian: Float[Tensor, "inp inp"],
    *,
    bits: int,
    symmetric: bool = False,
    clip: str = "minmax",
    scale_dtype: torch.dtype | None = None,
    order: str = "natural",
    rounding: str = "nearest",
    generator: torch.Generator | None = None,
    damp: float = 0.01,
    block_size: int = 128,
) -> Quantized:
    r"""Quantize with LDLQ on one grid per row, as :func:`mlcomp.quant.gptq` does without groups.

    Args:
        weight: (out, inp), any float dtype; not modified.
        hessian: (inp, inp), $2XX^\top$, float32 or float64; not modified.
        bits: bits per code, 1 to 8.
        symmetric: zero code fixed at 2^(b−1), not stored.
        clip: "minmax" or "mse", how a grid is fitted (see :func:`mlcomp.quant.fit_grid`).
        scale_dtype: dtype that the steps are stored in, as in :func:`mlcomp.quant.rtn`.
        order: of the columns: "natural", "activation" or "ascending", as in ``gptq``.
        rounding: "nearest" or "stochastic".
        generator: for "stochastic"; on the weight's device.
        damp: share of the mean live diagonal of H added to its diagonal.
        block_size: columns per matrix product; speed only.
    Returns:
        Codes in the original order of columns.
    Raises:
        ValueError: malformed weight, H or option; H + λI singular.
    Guarantee: with "nearest", the codes of ``gptq`` with the same options, up to ties; in float64 none was seen.
    Cost: out·inp² + 5/3·inp³ FLOPs.
    Deviations: a dead input (zero diagonal) gets the code of 0 and no say in the grid.
    """
    weight = check_weight(weight)
    check_bits(bits)
    hessian = check_hessian(hessian, weight.shape[1])
    check_sweep(order, block_size)
    check_rounding(rounding, generator)
    damped = damped_hessian(hessian, damp=damp)
    columns = column_order(hessian, order)
    live = weight.to(torch.promote_types(weight.dtype, torch.float32)).masked_fill(damped.dead, 0)
    grid = fit_grid(live, bits=bits, symmetric=symmetric, clip=clip, scale_dtype=scale_dtype)
    feedback, _ = ldl(damped.matrix[columns][:, columns], summed_in=hessian.dtype)
    scaled = (live.double() / grid.step.double())[:, columns]
    zero = grid.zero[:, 0].double()
    coin = generator if rounding == "stochastic" else None
    rounded = _round(scaled, feedback, -zero, 2**bits - 1 - zero, coin, block_size)
    codes = (rounded + grid.zero)[:, columns.argsort()].to(torch.uint8)
    return grid.quantized(codes)


def _round(
    weight: Tensor,
    feedback: Tensor,
    low: Tensor | float | int | None,
    high: Tensor | float | int | None,
    coin: torch.Generator | None,
    block_size: int,
) -> Tensor:
    """Return whole numbers: LDLQ with the feedback of a decomposition that is there already."""

    def bound(value: Tensor | float | int | None, infinite: float) -> Tensor:
        return torch.as_tensor(infinite if value is None else value, dtype=torch.float64, device=weight.device)

    low, high = bound(low, -torch.inf), bound(high, torch.inf)

    def choose(k: int, goal: Tensor) -> Tensor:
        if coin is None:
            rounded = torch.round(goal)
        else:
            draw = torch.rand(goal.shape, generator=coin, dtype=goal.dtype, device=goal.device)
            rounded = torch.floor(goal + draw)
        return torch.minimum(torch.maximum(rounded, low), high)

    # w − (w − q) is q up to float64 rounding.
    return feedback_rounding(weight, feedback, choose, block_size=block_size).round()


def check_rounding(rounding: str, generator: torch.Generator | None) -> None:
    """Raise unless ``rounding`` is known and "stochastic" has its generator."""
    check_choice("rounding", rounding, ROUNDINGS)
    if rounding == "stochastic" and generator is None:
        raise ValueError('rounding="stochastic" needs a generator, so that its result can be repeated')
