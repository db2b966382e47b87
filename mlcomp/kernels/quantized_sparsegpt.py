r"""SparseGPT with joint quantization, the columns of a lazy batch in one launch, all rows at once.

Notation: as the reference. See :mod:`mlcomp.kernels.block_sweep` for what a program does.
Source: Frantar, Alistarh 2023, arXiv:2301.00774, Algorithm 1 and what follows it on joint quantization.
Syllabus: 3.11
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mlcomp.checks import check_bits, check_dtype, check_group_size, check_hessian, check_weight
from mlcomp.context import isolated
from mlcomp.kernels.block_sweep import Grids, sweep_with_zeros
from mlcomp.kernels.launch import check_devices
from mlcomp.layerwise.column_sweep import check_sweep
from mlcomp.prune.post_training.sparsegpt import ZerosOfSweep
from mlcomp.quant.grid import fit_grid
from mlcomp.quant.quantized import Quantized

REFERENCE = "mlcomp.obs.quantized_sparsegpt"


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
    dtype: torch.dtype = torch.float64,
) -> Quantized:
    r"""Zero the weights that SparseGPT would, round the rest; later columns make up for both.

    Args:
        weight, hessian, bits, sparsity, pattern, mask, group_size, symmetric, clip, scale_dtype, order, damp,
            mask_block: as the reference.
        block_size: columns per lazy batch, of which at most 128 are used; speed only.
        dtype: that the sweep is computed in: float64 as the reference, or float32; the factor is made in float64.
    Returns:
        Codes in the original order of columns; a removed weight has the code of 0.
    Raises:
        ValueError: as the reference; wrong device. TypeError: another dtype.
    Guarantee: in float64 the reference's codes, unless scores, or a weight between two codes, tie up to rounding.
    Cost: as :func:`mlcomp.kernels.sparsegpt.sparsegpt`.
    """
    check_devices(weight=weight, hessian=hessian, **({} if mask is None else {"mask": mask}))
    weight = check_weight(weight)
    check_bits(bits)
    inp = weight.shape[1]
    check_group_size(group_size, inp)
    hessian = check_hessian(hessian, inp)
    check_sweep(order, block_size)
    check_dtype("dtype", dtype, (torch.float32, torch.float64))
    own = torch.promote_types(weight.dtype, torch.float32)  # of the grids: float64 for float64 weights only
    live = weight.to(own).masked_fill(hessian.diagonal() == 0, 0)
    grid = fit_grid(live, bits=bits, group_size=group_size, symmetric=symmetric, clip=clip, scale_dtype=scale_dtype)
    zeros = ZerosOfSweep(
        weight,
        hessian,
        sparsity=sparsity,
        pattern=pattern,
        mask=mask,
        order=order,
        damp=damp,
        mask_block=mask_block,
    )
    group = (zeros.columns // (group_size or inp)).int()
    grids = Grids(grid.step.T.contiguous(), grid.zero.T.contiguous(), group, bits)
    codes = sweep_with_zeros(zeros, pattern=pattern, block_size=block_size, dtype=dtype, grids=grids)
    return grid.quantized(codes.contiguous())
