r"""SpQR: small groups whose statistics are themselves quantized, and a few outlier weights kept in 16 bits.

Notation: W weight (out, inp), $H = 2XX^\top$, U with $U^\top U = (H + \lambda I)^{-1}$, b bits of a code, s step and
z zero point (a real number) of a group of $\beta_1$ columns of one row, τ threshold.
A weight is an outlier if its rounding error costs more than τ: $(w - \hat w)^2/U_{jj}^2 > \tau$. Outliers first leave
the fit: weight i of a group stays out if the error of the others on a grid fitted without it, plus τ, is less than
that of all (leave one out). The rest is GPTQ: later columns make up for each error; an outlier has nearly none.
Source: Dettmers et al. 2023, arXiv:2306.03078, Algorithm 1 and section 4, with the second test (the first formula)
of the authors' code.   Syllabus: 1.11
"""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mlcomp.checks import (
    check_bits,
    check_group_size,
    check_hessian,
    check_positive,
    check_weight,
    check_whole,
    narrowed,
)
from mlcomp.context import isolated
from mlcomp.layerwise.column_sweep import ColumnSweep, check_sweep, column_order, inverse_factor
from mlcomp.quant.grid import fit_grid
from mlcomp.quant.post_training.spqr_format import Bilevel, Plain, SpQR

SMALLEST_STEP = 2.0**-24  # of float16


@isolated
def spqr(
    weight: Float[Tensor, "out inp"],
    hessian: Float[Tensor, "inp inp"],
    *,
    bits: int,
    group_size: int = 16,
    statistic_bits: int | None = 3,
    statistic_rows: int = 16,
    threshold: float | None = 0.2,
    order: str = "natural",
    damp: float = 0.01,
    block_size: int = 128,
) -> SpQR:
    r"""Quantize with GPTQ on small bilevel groups, and keep what would cost too much in 16 bits.

    Args:
        weight: (out, inp), any float dtype, inp ≤ 65536; not modified.
        hessian: (inp, inp), $2XX^\top$, float32 or float64; not modified.
        bits: bits per code, 1 to 8.
        group_size: β₁, columns that share a step; must divide ``inp``.
        statistic_bits: bits per step and per zero point. None: no second level; 32 bits a step (64 for float64
            weights), zero points whole numbers of ``bits`` bits.
        statistic_rows: β₂, rows whose statistics share a second-level grid.
        threshold: τ in units of the mean cost of removing a weight, $\mathrm{mean}_j(\overline{w_j^2}/U_{jj}^2)$:
            less gives more outliers; about 1 % at 1.0 for 2 bits, 0.3 for 3, 0.07 for 4. None: no outliers.
        order: of the columns, and with it of the groups: "natural"; "activation" (largest diagonal of H first, as
            the authors' code does) or "ascending", which store the order in 16 bits a column.
        damp: share of the mean live diagonal of H added to its diagonal.
        block_size: columns per lazy batch; speed only.
    Raises:
        ValueError: malformed weight, H or option; H + λI singular.
    Guarantee: the scales of X and of W (by powers of two) do not matter; a weight that is no outlier costs at most τ.
        Without a second level and without outliers, the codes and grids are those of ``gptq`` with groups.
    Cost: GPTQ's, and ``group_size`` fits of every group for the leave-one-out test.
    Deviations: outliers are rounded to float16, and the sweep makes up for that, too.
        A group of which fewer than two weights would stay in the fit is fitted whole. The range of a group need not
        include 0, as in the paper, so zeros and dead inputs decode to values near 0.
    """
    weight = check_weight(weight)
    check_bits(bits)
    out, inp = weight.shape
    check_group_size(group_size, inp)
    _check_options(inp, statistic_bits, statistic_rows, threshold)
    if statistic_bits is not None:
        narrowed(weight, torch.float32)  # in which it is decoded
    hessian = check_hessian(hessian, inp)
    check_sweep(order, block_size)
    columns = column_order(hessian, order)
    factor, dead = inverse_factor(hessian, columns, damp=damp)
    exact = torch.promote_types(weight.dtype, torch.float32)  # of a step without a second level

    live, dead = weight.double().masked_fill(dead, 0)[:, columns], dead[columns]
    largest = float(live.abs().max())
    unit = 2.0 ** torch.tensor(largest).log2().ceil().item() if largest > 0 else 1.0
    live = live / unit
    pivots = factor.diagonal()
    limit = torch.inf
    if threshold is not None and not dead.all():
        limit = threshold * float((live.square().mean(0) / pivots.square())[~dead].mean())
    codes = torch.empty(inp, out, dtype=torch.uint8, device=weight.device)
    kept = torch.zeros(inp, out, dtype=torch.bool, device=weight.device)
    values = torch.zeros(inp, out, dtype=torch.float16, device=weight.device)
    steps, zeros = [], []
    sweep = ColumnSweep(live.T.contiguous(), factor, block_size=block_size)
    for i in range(inp):
        if i % group_size == 0:
            group = sweep.now(i, i + group_size).T
            inlier = ~likely_outliers(group, pivots[i : i + group_size], bits, limit)
            step, zero = _statistics(group, inlier, bits, statistic_bits, statistic_rows, exact)
            steps.append(step)
            zeros.append(zero)
            s, z = step.decode()[:, 0].double(), zero.decode()[:, 0].double()
        w = sweep.column()
        q = torch.clamp(torch.round(w / s + z), 0, 2**bits - 1)
        value = (q - z) * s
        codes[i] = q.to(torch.uint8)
        kept[i] = ((w - value) / pivots[i]).square() > limit
        values[i] = w.half()
        sweep.fix(w, torch.where(kept[i], values[i].double(), value))

    mask = kept.T.contiguous()
    pointers = torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0)).to(torch.int32)
    places = mask.nonzero()[:, 1].to(torch.int32)
    stored = None if order == "natural" else columns.to(torch.int32)
    return SpQR(
        codes.T.contiguous(), _join(steps), _join(zeros), pointers, places, values.T[mask], unit, bits, stored
    )  # fmt: skip


def likely_outliers(
    group: Float[Tensor, "out size"], pivots: Float[Tensor, " size"], bits: int, limit: float
) -> Bool[Tensor, "out size"]:
    r"""Return which weights cost the others of their group more than ``limit``, each tried alone.

    $\sum_j e_j^2/U_{jj}^2$ over the whole group, minus the same over the others on a grid fitted without weight i.
    Where fewer than two weights of a row would stay, nothing is left to fit a grid to, and none leaves.
    """
    if limit == torch.inf or group.shape[1] == 1:
        return torch.zeros_like(group, dtype=torch.bool)

    def cost(keep: Tensor) -> Tensor:
        step, zero = _fit(group, keep, bits)
        q = torch.clamp(torch.round(group / step[:, None] + zero[:, None]), 0, 2**bits - 1)
        errors = ((group - (q - zero[:, None]) * step[:, None]) / pivots).square()
        return errors.masked_fill(~keep, 0).sum(1)

    everyone = torch.ones_like(group, dtype=torch.bool)
    base = cost(everyone)
    gains = []
    for i in range(group.shape[1]):
        others = everyone.clone()
        others[:, i] = False
        gains.append(base - cost(others))
    likely = torch.stack(gains, dim=1) > limit
    return likely & ((~likely).sum(1, keepdim=True) >= 2)


def _fit(group: Tensor, keep: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return step and real zero point (out,) of the range of the weights to keep.

    A constant group gets the mean step of the others, so that it does not stretch the second level.
    """
    low = group.masked_fill(~keep, torch.inf).amin(1)
    high = group.masked_fill(~keep, -torch.inf).amax(1)
    empty = ~keep.any(1)
    low, high = low.masked_fill(empty, 0), high.masked_fill(empty, 0)
    step = (high - low) / (2**bits - 1)
    flat = step <= SMALLEST_STEP
    usual = step[~flat].mean() if not flat.all() else torch.ones_like(step[0])
    step = torch.where(flat, usual, step)
    return step, -low / step


def _second_level(values: Tensor, bits: int, rows: int) -> Bilevel:
    """Quantize one statistic of one column of groups, (out,), each ``rows`` of them on a grid of their own."""
    out = len(values)
    padded = torch.cat([values, values[-1:].expand(-out % rows)]).reshape(-1, rows)
    low, high = padded.amin(1), padded.amax(1)
    low16 = low.half()
    step16 = ((high - low16.double()).clamp(min=0) / (2**bits - 1)).half()
    step = step16.double().masked_fill(step16 == 0, 1)
    codes = torch.clamp(torch.round((padded - low16.double()[:, None]) / step[:, None]), 0, 2**bits - 1)
    codes = codes.masked_fill((step16 == 0)[:, None], 0).to(torch.uint8).reshape(-1)[:out]
    return Bilevel(codes[:, None], low16[:, None], step16[:, None], bits, rows)


def _statistics(
    group: Tensor, inlier: Tensor, bits: int, statistic_bits: int | None, rows: int, exact: torch.dtype
) -> tuple[Bilevel, Bilevel] | tuple[Plain, Plain]:
    """Return the step and the zero point of one column of groups, as stored."""
    if statistic_bits is None:
        grid = fit_grid(group.masked_fill(~inlier, 0).to(exact), bits=bits)  # a 0 never stretches the grid
        return Plain(grid.step, 8 * grid.step.element_size()), Plain(grid.zero, bits)
    step, zero = _fit(group, inlier, bits)
    # A step must stay positive in float16; a zero point may be anything.
    step = step.clamp(min=SMALLEST_STEP)
    return _second_level(step, statistic_bits, rows), _second_level(zero, statistic_bits, rows)


def _join(parts: list) -> Bilevel | Plain:
    """Return the columns of groups side by side."""
    first = parts[0]
    names = ("values",) if isinstance(first, Plain) else ("codes", "low", "step")
    return replace(first, **{name: torch.cat([getattr(part, name) for part in parts], dim=1) for name in names})


def _check_options(inp: int, statistic_bits: int | None, statistic_rows: int, threshold: float | None) -> None:
    if inp > 2**16:
        raise ValueError(f"a column index has 16 bits, so at most 65536 inputs, got {inp}")
    if statistic_bits is not None:
        check_bits(statistic_bits)
    check_whole("statistic_rows", statistic_rows, 1)
    if threshold is not None:
        check_positive("threshold", threshold)
