r"""SparseGPT with the columns of a lazy batch in one launch, all rows at once.

Notation: as the reference. See :mod:`mlcomp.kernels.block_sweep` for what a program does. The zeros of a pattern n:m
are chosen in the kernel; those of ``sparsity``, which rows share, before the launch that their columns begin.
Source: Frantar, Alistarh 2023, arXiv:2301.00774, Algorithm 1.   Syllabus: 2.05, 2.06, 3.11
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mlcomp.checks import check_dtype, check_weight, narrowed
from mlcomp.context import isolated
from mlcomp.kernels.block_sweep import sweep_with_zeros
from mlcomp.kernels.launch import check_devices
from mlcomp.layerwise.column_sweep import check_sweep
from mlcomp.prune.post_training.sparsegpt import ZerosOfSweep

REFERENCE = "mlcomp.prune.sparsegpt"


@isolated
def sparsegpt(
    weight: Float[Tensor, "out inp"],
    hessian: Float[Tensor, "inp inp"],
    *,
    sparsity: float | None = None,
    pattern: tuple[int, int] | None = None,
    mask: Bool[Tensor, "out inp"] | None = None,
    order: str = "natural",
    damp: float = 0.01,
    mask_block: int = 128,
    block_size: int = 128,
    dtype: torch.dtype = torch.float64,
) -> Float[Tensor, "out inp"]:
    r"""Zero the weights of least $w_i^2/U_{ii}^2$ in each block of columns, and let the later columns compensate.

    Args:
        weight, hessian, sparsity, pattern, mask, order, damp, mask_block: as the reference.
        block_size: columns per lazy batch, of which at most 128 are used; speed only.
        dtype: that the sweep is computed in: float64 as the reference, or float32; the factor is made in float64.
    Returns:
        The pruned and updated weight (out, inp), in the dtype of ``weight``.
    Raises:
        ValueError: as the reference; wrong device. TypeError: another dtype.
    Guarantee: in float64 the reference's mask, and its weights up to rounding, unless two scores tie up to rounding.
    Cost: out·inp² + inp³ FLOPs, nearly all in matrix products; a launch and a product a batch. Blocks of
        ``mask_block`` columns, and patterns over more columns than a batch, need a launch each.
    """
    check_devices(weight=weight, hessian=hessian, **({} if mask is None else {"mask": mask}))
    weight = check_weight(weight)
    check_sweep(order, block_size)
    check_dtype("dtype", dtype, (torch.float32, torch.float64))
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
    result = sweep_with_zeros(zeros, pattern=pattern, block_size=block_size, dtype=dtype)
    return narrowed(result, weight.dtype).contiguous()
