r"""SparseGPT with joint quantization: one sweep that removes some weights and rounds the others.

Notation: W weight, $H = 2XX^\top$, U with $U^\top U = (H+\lambda I)^{-1}$; a weight w of column i becomes q: 0, or
the nearest point of its grid; and $e = (w - q)/U_{ii}$ moves the later columns j by $-e\,U_{ij}$.
Source: Frantar, Alistarh 2023, arXiv:2301.00774, Algorithm 1 and what follows it on joint quantization.
Syllabus: 3.11
"""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mlcomp.checks import check_bits, check_group_size, check_hessian, check_weight
from mlcomp.context import isolated
from mlcomp.prune.post_training.sparsegpt import sweep_with_zeros
from mlcomp.quant.grid import fit_grid
from mlcomp.quant.quantized import Quantized


@isolated
def quantized_sparsegpt(
    weight: Float[Tensor, "out inp"],
    hessian: Float[Tensor, "inp inp"],
    *,
    bits: int,
    sparsity: float | None = None,
    pattern: tuple[int, int] | None = None,
    mask: Bool[Tensor, "out inp"] | None = None,
    group_size: int | None = None,
    symmetric: bool = False,
    clip: str = "minmax",
    scale_dtype: torch.dtype | None = None,
    order: str = "natural",
    damp: float = 0.01,
    mask_block: int = 128,
    block_size: int = 128,
) -> Quantized:
    r"""Zero the weights that :func:`mlcomp.prune.sparsegpt` would, round the rest; later columns make up for both.

    Args:
        weight: (out, inp), any float dtype; not modified.
        hessian: (inp, inp), $2XX^\top$, float32 or float64; not modified.
        bits: bits per code, 1 to 8.
        sparsity, pattern, mask, order, mask_block: which weights are removed, as for :func:`mlcomp.prune.sparsegpt`.
            Scores are taken from the weights as updated by all errors so far, of zeros and of rounding.
        group_size: consecutive columns that share a step; must divide ``inp``. None: the whole row.
        symmetric: zero code fixed at 2^(b−1), not stored.
        clip: "minmax" or "mse", how a grid is fitted (see :func:`mlcomp.quant.fit_grid`); all grids are fitted to the
            original weights, before the sweep.
        scale_dtype: dtype that the steps are stored in, as in :func:`mlcomp.quant.rtn`.
        damp: share of the mean live diagonal of H added to its diagonal.
        block_size: columns per lazy batch; speed only.
    Returns:
        Codes in the original order of columns; a removed weight has the code of 0. ``nbytes`` counts a code for every
        weight: as a bitmask and the codes of what is left it is less (:func:`mlcomp.formats.sparse_nbytes`).
    Raises:
        ValueError: malformed weight, H or option; not exactly one target; H + λI singular.
    Guarantee: at least the zeros of :func:`mlcomp.prune.sparsegpt` (rounding makes more). With nothing to remove the
        codes are those of :func:`mlcomp.quant.gptq` with static groups. It depends neither on ``block_size`` nor on
        the scale of X.
    Cost: 2·out·inp² + 4·inp³ FLOPs.
    Deviations: as for :func:`mlcomp.prune.sparsegpt`; groups, which the paper does not use.
    """
    weight = check_weight(weight)
    check_bits(bits)
    inp = weight.shape[1]
    check_group_size(group_size, inp)
    hessian = check_hessian(hessian, inp)

    dtype = torch.promote_types(weight.dtype, torch.float32)  # of the grids: float64 for float64 weights only
    live = weight.to(dtype).masked_fill(hessian.diagonal() == 0, 0)
    grid = fit_grid(live, bits=bits, group_size=group_size, symmetric=symmetric, clip=clip, scale_dtype=scale_dtype)
    size = group_size or inp
    groups = [
        replace(grid, step=step, zero=zero)
        for step, zero in zip(grid.step.split(1, dim=1), grid.zero.split(1, dim=1), strict=True)
    ]

    def settle(column: int, w: Tensor) -> Tensor:
        return groups[column // size].round(w[:, None])[:, 0].double()

    swept = sweep_with_zeros(
        weight,
        hessian,
        settle,
        sparsity=sparsity,
        pattern=pattern,
        mask=mask,
        order=order,
        damp=damp,
        mask_block=mask_block,
        block_size=block_size,
    )
    return grid.quantized(grid.encode(swept.to(dtype)))  # exact: what is swept lies on the grid
