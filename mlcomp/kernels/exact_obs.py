r"""ExactOBS with every row in its own program: all rows at once, no step waits for another row.

Notation: W weight, B the inverse Hessian of a row over the inputs it still has, p the weight that goes next.
A program keeps weights, the diagonal of B and the mask of a row in registers; see ``mlcomp.kernels.row_inverse``
for the column of B that a step needs.
Source: Frantar, Singh, Alistarh 2022, arXiv:2208.11580, algorithm 1 and section 4.   Syllabus: 2.05, 2.06
"""

from typing import no_type_check

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import (
    check_choice,
    check_dtype,
    check_hessian,
    check_sparsity,
    check_target,
    check_weight,
    narrowed,
    removals,
)
from mlcomp.context import isolated
from mlcomp.kernels.launch import check_devices, tl, triton
from mlcomp.kernels.row_inverse import current_column, launch_sizes, pick, scratch
from mlcomp.layerwise.hessian import damped_hessian, inverse_hessian
from mlcomp.obs.exact_obs import weights_of_least_loss
from mlcomp.obs.row_removal import pattern_room
from mlcomp.obs.trace import Trace

REFERENCE = "mlcomp.obs.exact_obs"


@isolated
def exact_obs(
    weight: Float[Tensor, "out inp"],
    hessian: Float[Tensor, "inp inp"],
    *,
    sparsity: float | None = None,
    pattern: tuple[int, int] | None = None,
    scope: str = "global",
    row_cap: float = 1.0,
    damp: float = 0.0,
    dtype: torch.dtype = torch.float64,
    max_bytes: int = 2**30,
) -> Float[Tensor, "out inp"]:
    r"""Prune one weight of each row at a time, always the one that costs least after the others have made up for it.

    $p = \arg\min_p w_p^2/B_{pp}$, then $w \leftarrow w - \frac{w_p}{B_{pp}} B_{:,p}$.

    Args:
        weight: (out, inp), any float dtype; not modified.
        hessian: (inp, inp), $2XX^\top$, float32 or float64; not modified.
        sparsity: share of the weights to remove, rounded half up to a count.
        pattern: (n, m), n zeros in every m consecutive inputs, instead of ``sparsity``.
        scope: "row", the same count in each row; or "global", the counts that give the whole layer the least error:
            the kernel traces every row up to ``row_cap``, and the rest is done as in the reference.
        row_cap: with scope="global", the largest share that one row may lose; it must be at least ``sparsity``.
        damp: share of the mean live diagonal of H added to its diagonal.
        dtype: that a row is worked on in. float64 as the reference; float32 takes half the memory and drifts when H
            is ill-conditioned (0.5 % of the loss at a condition of 1e8).
        max_bytes: bound on the working memory: it limits how many rows run at once, not the result.
    Returns:
        (out, inp) in the dtype of ``weight``; removed weights are exact zeros.
    Raises:
        ValueError: malformed weight, H or option; H + λI singular; max_bytes too small for one row; wrong device.
    Guarantee: in float64 the reference's mask, and its weights up to rounding, unless two scores tie up to rounding.
    Cost: per row about inp·k² FLOPs for k removals (row_cap·inp of them with scope="global"), and k·inp numbers of
        memory for each program.
    """
    check_devices(weight=weight, hessian=hessian)
    weight = check_weight(weight)
    check_target(sparsity, pattern)
    out, inp = weight.shape
    hessian = check_hessian(hessian, inp)
    check_choice("scope", scope, ("global", "row"))
    check_dtype("dtype", dtype, (torch.float32, torch.float64))
    traced = pattern is None and scope == "global"
    share = 0.0 if sparsity is None else sparsity  # None comes with a pattern only
    if traced:
        check_sparsity(row_cap)
        if share > row_cap:
            raise ValueError(f"row_cap must lie between sparsity={sparsity} and 1, got {row_cap!r}")
    inverse = inverse_hessian(hessian, damp=damp)
    steps = sum(pattern_room(pattern, inp)) if pattern else removals(row_cap if traced else share, inp)
    vectors = scratch(out, steps, inp, dtype, max_bytes, weight.device)
    # A pivot is never below 1/H_pp; rounding could make it so.
    floor = (1 / damped_hessian(hessian, damp=damp).matrix.diagonal()).to(dtype)
    result = weight.to(dtype).masked_fill(inverse.dead, 0).contiguous()
    order = torch.empty(out, steps if traced else 0, dtype=torch.int32, device=weight.device)
    losses = torch.empty(order.shape, dtype=dtype, device=weight.device)
    zeros, size = pattern if pattern is not None else (steps, inp)
    _kernel[(len(vectors),)](
        result, order, losses, inverse.inverse.to(dtype).contiguous(), floor, vectors, out, inp, steps, zeros, size,
        PATTERN=pattern is not None, TRACED=traced, enable_fp_fusion=True, **launch_sizes(inp, dtype),
    )  # fmt: skip
    if not traced:
        return narrowed(result, weight.dtype)
    live = weight.double().masked_fill(inverse.dead, 0)
    trace = Trace(live, inverse.inverse, order.long(), losses.double(), 1, weight.dtype)
    return weights_of_least_loss(trace, share, max_bytes=max_bytes)


@triton.jit
@no_type_check
def _kernel(
    w_ptr, order_ptr, losses_ptr, inverse_ptr, floor_ptr, vectors_ptr, out, d, steps, zeros, size,
    PATTERN: tl.constexpr, TRACED: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, BLOCK)
    inside = column < d
    wide = tl.zeros((), tl.int64) + d
    vectors_ptr += tl.program_id(0).to(tl.int64) * steps * d
    start = tl.load(inverse_ptr + column * (d + 1), mask=inside, other=1)
    # Zeros that each column's group of ``size`` may have; a short last group its share of them.
    first = column // size * size
    room = zeros * tl.minimum(size, d - first) // size
    for row in range(tl.program_id(0), out, tl.num_programs(0)):
        row_ptr = w_ptr + row * wide
        w = tl.load(row_ptr + column, mask=inside, other=0)
        diagonal = start
        alive = inside
        taken = tl.zeros((BLOCK,), tl.int32)
        for step in range(0, steps):
            may = alive
            if PATTERN:
                may = may & (taken < room)
            p = tl.argmin(tl.where(may, w * w / diagonal, float("inf")), 0)
            b = current_column(inverse_ptr, vectors_ptr, p, step, d, column, CHUNK)
            pivot = tl.maximum(pick(b, column, p), tl.load(floor_ptr + p))
            share = pick(w, column, p) / tl.sqrt(pivot)
            if TRACED:
                at = row * steps + step
                tl.store(order_ptr + at, p)
                tl.store(losses_ptr + at, share * share / 2)
            alive = alive & (column != p)
            v = tl.where(alive, b, 0.0) / tl.sqrt(pivot)
            w = tl.where(alive, w - v * share, 0.0)
            diagonal = tl.where(alive, diagonal - v * v, 1.0)
            taken += (first == p // size * size).to(tl.int32)
            tl.store(vectors_ptr + step * d + column, v, mask=inside)
        # The next row writes its first vectors over those that other threads may still be reading.
        tl.debug_barrier()
        tl.store(row_ptr + column, w, mask=inside)
