r"""The sweep of GPTQ and SparseGPT in blocks: one launch fixes a block of columns, one program some of its rows.

Notation: as :mod:`mlcomp.layerwise.column_sweep`: W weight, U the factor, a weight w of column i becomes q, and
$e = (w - q)/U_{ii}$ moves the later columns j by $-e\,U_{ij}$.
Rows need nothing of each other. A program is one warp (32 threads), so that no step waits for another one; it keeps
its rows of the block in registers. In each step it reads a row of U. The block's part of U, at most 128 KB, is the
same for all programs and stays in the first-level cache of a multiprocessor. An error takes the place of its weight,
which nobody needs any more: where columns are done, W holds their errors, and those of a lazy batch move the columns
after it by one matrix product, which is the vendor's.
Source: Frantar et al. 2023, GPTQ, arXiv:2210.17323, section 3.3, steps 2 and 3.   Syllabus: 2.08, 3.11
"""

from collections.abc import Iterator
from typing import NamedTuple, no_type_check

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlcomp.kernels.launch import INTERPRETED, tl, triton
from mlcomp.kernels.obq import nearest
from mlcomp.prune.post_training.sparsegpt import ZerosOfSweep

BLOCK = 128  # the most columns of a launch


class Grids(NamedTuple):
    """Grids of groups: step and zero code (groups, out) in the dtype of the reference's; the group of each column."""

    step: Float[Tensor, "groups out"]
    zero: Float[Tensor, "groups out"]
    group: Int[Tensor, " inp"]
    bits: int


class BlockSweep:
    """The columns of W, fixed block after block.

    Attributes:
        weight: (out, inp) in the order of the sweep: weights as they stand before each launch, errors where it has
            been.
        result: (inp, out) what became of the columns: codes where there are grids, values otherwise.
    """

    def __init__(
        self,
        weight: Float[Tensor, "out inp"],
        factor: Float[Tensor, "inp inp"],
        *,
        dtype: torch.dtype,
        grids: Grids | None = None,
        removed: Tensor | None = None,
        pattern: tuple[int, int] | None = None,
    ) -> None:
        """Begin a sweep.

        Args:
            weight: in the order of the sweep; not modified. factor: U.
            dtype: that the sweep is computed in.
            grids: what weights are rounded to; the caller may fill them while the sweep runs.
            removed: (inp, out), True where a weight goes to zero; may be filled on the way, too. It or ``pattern``
                is needed where there are no grids.
            pattern: (n, m), instead of ``removed``: n zeros in every m columns are chosen in the kernel. Dead inputs,
                whose weights are 0 and stay so, are the first of them.
        """
        self.weight = weight.to(dtype, copy=True).contiguous()
        out, inp = weight.shape
        self.result = torch.empty(inp, out, dtype=torch.uint8 if grids else dtype, device=weight.device)
        self._factor = factor.to(dtype).contiguous()
        self._grids, self._removed, self._pattern = grids, removed, pattern
        self._batch = 0  # where the lazy batch under way begins

    def fix(self, start: int, end: int, stop: int) -> None:
        """Fix columns start … end − 1, those before being done; columns up to ``stop`` learn of it at once.

        With end = stop the lazy batch ends, and all columns after it learn of all its errors.
        """
        out, inp = self.weight.shape
        w, grids, width = self.weight, self._grids, end - start
        rows = min(64, triton.next_power_of_2(out)) if INTERPRETED else 4
        step, zero, group, bits = grids or (w, w, w, 0)
        block = max(32, triton.next_power_of_2(width))
        _kernel[(triton.cdiv(out, rows),)](
            w, self._factor, self.result, w if self._removed is None else self._removed.view(torch.uint8), step, zero,
            group, out, inp, start, width, 2**bits - 1, *(self._pattern or (0, 1)), ROUND=grids is not None,
            MASKED=self._removed is not None, PATTERN=self._pattern is not None, WHOLE=width == block, ROWS=rows,
            BLOCK=block, num_warps=1, enable_fp_fusion=True,
        )  # fmt: skip
        first, last = (start, stop) if end < stop else (self._batch, inp)
        w[:, end:last].addmm_(w[:, first:end], self._factor[first:end, end:last], alpha=-1)
        self._batch = self._batch if end < stop else end


def launches(inp: int, span: int, block_size: int) -> Iterator[tuple[int, int, int]]:
    """Yield start, end and stop of :meth:`BlockSweep.fix` so that every multiple of ``span`` starts a launch.

    All columns up to the next multiple are then as the columns before have left them.
    """
    block = min(block_size, BLOCK)
    batch = span * max(1, block // span)
    for first in range(0, inp, batch):
        last = min(first + batch, inp)
        for start in range(first, last, min(span, block)):
            end = min(start + min(span, block), last)
            yield start, end, last if span <= block else end


def sweep_with_zeros(
    zeros: ZerosOfSweep,
    *,
    pattern: tuple[int, int] | None,
    block_size: int,
    dtype: torch.dtype,
    grids: Grids | None = None,
) -> Tensor:
    """Return the swept weight (out, inp) in its own order: codes where there are grids, values otherwise."""
    inp = len(zeros.columns)
    block = min(block_size, BLOCK)
    if inside := pattern is not None and pattern[1] <= block:  # few columns choose together: the kernel does it
        block -= block % pattern[1]
    sweep = BlockSweep(
        zeros.start.T, zeros.factor, dtype=dtype, grids=grids, removed=None if inside else zeros.removed,
        pattern=pattern if inside else None,
    )  # fmt: skip
    choices = range(0) if inside else zeros.choices
    for start, end, stop in launches(inp, choices.step if choices else inp, block):
        if start in choices:
            zeros.choose(start, sweep.weight[:, start : zeros.end(start)].T)
        sweep.fix(start, end, stop)
    return sweep.result[zeros.columns.argsort()].T


@triton.jit
@no_type_check
def _kernel(
    w_ptr, factor_ptr, result_ptr, removed_ptr, step_ptr, zero_ptr, group_ptr, out, inp, start, width, top, zeros,
    size, ROUND: tl.constexpr, MASKED: tl.constexpr, PATTERN: tl.constexpr, WHOLE: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = row < out
    wide, tall = tl.zeros((), tl.int64) + inp, tl.zeros((), tl.int64) + out
    tile_ptr = w_ptr + row[:, None] * wide + start + column[None, :]
    live = inside[:, None] if WHOLE else inside[:, None] & (column[None, :] < width)
    w = tl.load(tile_ptr, mask=live, other=0)
    factor_ptr += start * wide + start
    if PATTERN:
        scale = 1 / tl.load(factor_ptr + column * (wide + 1), mask=column < width, other=1)
        gone = (column[None, :] < 0) & inside[:, None]  # none yet
    for i in range(0, width):
        here = column[None, :] == i
        if PATTERN:
            if i % size == 0:
                score = w * scale[None, :]
                score = tl.minimum(score * score, 1e38)  # none ties with what may not be chosen
                may = ((column >= i) & (column < i + size) & (column < width))[None, :] & inside[:, None]
                for _ in range(0, zeros * tl.minimum(size, width - i) // size):
                    p = tl.argmin(tl.where(may, score, float("inf")), 1)
                    chosen = column[None, :] == p[:, None]
                    gone, may = gone | chosen, may & ~chosen
        at = (start + i) * tall + row
        value = tl.sum(tl.where(here, w, 0.0), 1)
        if ROUND:
            group = tl.load(group_ptr + start + i) * tall + row
            step = tl.load(step_ptr + group, mask=inside, other=1)
            zero = tl.load(zero_ptr + group, mask=inside, other=0)
            code = nearest(value.to(step.dtype), step, zero, top)
        if PATTERN:
            kept = tl.sum((gone & here).to(tl.int32), 1) == 0
        elif MASKED:
            kept = tl.load(removed_ptr + at, mask=inside, other=1) == 0
        if ROUND and (PATTERN or MASKED):
            code = tl.where(kept, code, zero)
        if ROUND:
            q = ((code - zero) * step).to(value.dtype)
            tl.store(result_ptr + at, code.to(tl.int32).to(tl.uint8), mask=inside)
        else:
            q = tl.where(kept, value, 0.0)
            tl.store(result_ptr + at, q, mask=inside)
        error = (value - q) / tl.load(factor_ptr + i * (wide + 1))
        if WHOLE:
            u = tl.load(factor_ptr + i * wide + column)
        else:
            u = tl.load(factor_ptr + i * wide + column, mask=column < width, other=0)
        w = tl.where(here, error[:, None], w - error[:, None] * tl.where(column > i, u, 0.0)[None, :])
    tl.store(tile_ptr, w, mask=live)
