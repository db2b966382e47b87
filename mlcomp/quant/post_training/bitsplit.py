r"""Bit-Split: optimise the code one bit at a time, each bit a ternary plane, then stitch the planes together.

Notation: W weight, s step of a row, b bits, $q = \sum_{m=1}^{b-1} 2^{m-1} B_m$ with planes $B_m \in \{-1, 0, 1\}$,
so that
$|q| \le 2^{b-1} - 1$; $H = 2XX^\top$; $\min_{s, B} \lVert WX - s\,q X \rVert^2$.
Source: Wang et al. 2020, "Towards Accurate Post-training Network Quantization via Bit-Split and Stitching", ICML,
section 3.   Syllabus: 2.09
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import check_hessian, check_weight, check_whole, narrowed
from mlcomp.context import isolated
from mlcomp.quant.grid import fit_grid
from mlcomp.quant.quantized import Quantized


@isolated
def bitsplit(
    weight: Float[Tensor, "out inp"], hessian: Float[Tensor, "inp inp"], *, bits: int, sweeps: int = 8
) -> Quantized:
    r"""Alternate between the step and the bit planes of each row, each minimised exactly with the rest fixed.

    The step has the closed form $s = \frac{w H q^\top}{q H q^\top}$. A plane is minimised entry by entry (cyclic
    coordinate descent): with all else fixed, the error is a parabola in $B_{m,j}$ with its vertex at
    $B_{m,j} - (\delta H)_j / (2^{m-1} s\, h_{jj})$, and the best of −1, 0, 1 is the nearest to it.

    Args:
        weight: (out, inp), any float dtype, computed in float64; not modified.
        hessian: (inp, inp), $2XX^\top$, float32 or float64; may be singular; not modified.
        bits: bits per code, 2 to 8 (one sign and b − 1 ternary planes need at least 2).
        sweeps: rounds over the step and all planes; stops early when no code changes.
    Returns:
        codes on a symmetric grid, one step per row. The code 0 (−2^(b−1)) is never used.
    Raises:
        ValueError: bits outside 2..8, NaN or inf, H malformed, sweeps below 0.
    Guarantee: the output error of no row ever grows, from the start (the symmetric MSE-optimal grid, rounded to the
        levels −(2^(b−1) − 1) … 2^(b−1) − 1) to the end; more sweeps are never worse. Dead inputs get level 0.
    Cost: a sweep takes 2·(b − 1)·out·inp² FLOPs, in (b − 1)·inp updates of rank one.
    Deviations: the planes go from the highest to the lowest bit, and the start is the MSE-optimal grid; weights
        alone are quantized. The objective is taken through H, which is the paper's over all samples.
    """
    weight = check_weight(weight)
    check_whole("bits", bits, 2, 8)  # b − 1 ternary planes: none with one bit
    hessian = check_hessian(hessian, weight.shape[1])
    check_whole("sweeps", sweeps, 0)
    h = hessian.double()
    dead = h.diagonal() == 0
    w = weight.double().masked_fill(dead, 0)
    top = 2 ** (bits - 1) - 1
    grid = fit_grid(w, bits=bits, symmetric=True, clip="mse")
    step = grid.step
    level = torch.round(w / step).clamp(-top, top)
    planes = split_bits(level, bits)
    for _ in range(sweeps):
        before = level
        step = _best_step(w, level, h, step)
        level = _sweep(w, level, planes, h, step)
        if torch.equal(level, before):
            break
    dtype = torch.promote_types(weight.dtype, torch.float32)
    codes = (level + grid.zero).to(torch.uint8)
    return replace(grid, step=narrowed(step, dtype), zero=grid.zero.to(dtype)).quantized(codes)


def split_bits(level: Float[Tensor, "out inp"], bits: int) -> list[Tensor]:
    """Return the b − 1 ternary planes, lowest bit first: the binary digits of |q| with the sign of q."""
    return [torch.floor(level.abs() / 2**m) % 2 * level.sign() for m in range(bits - 1)]


def _best_step(w: Tensor, level: Tensor, h: Tensor, step: Tensor) -> Tensor:
    """Closed form; rows without energy, or against the weight's direction, keep their step."""
    pulled = level @ h
    energy = (pulled * level).sum(1, keepdim=True)
    overlap = (pulled * w).sum(1, keepdim=True)
    usable = (energy > 0) & (overlap > 0)
    return torch.where(usable, overlap / energy.where(usable, torch.ones_like(energy)), step)


def _sweep(w: Tensor, level: Tensor, planes: list[Tensor], h: Tensor, step: Tensor) -> Tensor:
    """Update every plane in place, highest bit first, and return the new levels."""
    level = level.clone()
    live = torch.nonzero(h.diagonal() > 0)[:, 0].tolist()
    for m in reversed(range(len(planes))):
        plane, place = planes[m], 2**m * step[:, 0]
        pull = (step * level - w) @ h
        for j in live:
            vertex = plane[:, j] - pull[:, j] / (place * h[j, j])
            best = torch.round(vertex).clamp(-1, 1)
            change = best - plane[:, j]
            plane[:, j] = best
            level[:, j] += 2**m * change
            pull.addr_(place * change, h[j])
    return level
