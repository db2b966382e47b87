r"""One column of a row's own inverse Hessian, brought up to date when it is needed.

Notation: $B^{(t)}$ the inverse Hessian of a row that has eliminated t columns, $v_s$ its elimination vectors:
$B^{(t)}_{:,p} = B^{(0)}_{:,p} - \sum_{s<t} v_{s,p}\, v_s$. The first term is shared by all rows and stays in the
cache; the vectors of a row lie in memory that belongs to its program. Algorithm 1 rewrites d² numbers a step, this
reads t·d.
Source: Frantar, Singh, Alistarh 2022, arXiv:2208.11580, lemma 1; in the order of the left-looking Cholesky
factorization (Golub and Van Loan, Matrix Computations, section 4.2).   Syllabus: 2.05
"""

from typing import no_type_check

import torch
from torch import Tensor

from mlcomp.kernels.launch import tl, triton

PROGRAMS = 2048  # more than any GPU runs at once; each works through rows, and its memory is used again


def scratch(out: int, steps: int, inp: int, dtype: torch.dtype, max_bytes: int, device: torch.device) -> Tensor:
    """Return the memory of the elimination vectors, (programs, steps, inp): as many programs as ``max_bytes`` allows.

    Raises:
        ValueError: not even one program fits.
    """
    each = max(1, steps) * inp * dtype.itemsize
    if max_bytes < each:
        raise ValueError(f"max_bytes={max_bytes} is less than the {each} bytes that one row of {inp} inputs needs")
    return torch.empty(min(out, PROGRAMS, max_bytes // each), max(1, steps), inp, dtype=dtype, device=device)


def launch_sizes(inp: int, dtype: torch.dtype) -> dict[str, int]:
    """Return the block, the number of vectors read at a time, and the warps, for rows of ``inp`` inputs."""
    block = max(32, triton.next_power_of_2(inp))
    # One warp up to 128 inputs: its sums and minima need no barrier.
    warps = min(8, max(1, block // 128))
    # What is read at a time takes 128 registers of each thread in float32; 64 in float64, where the rest takes more.
    registers = 128 if dtype == torch.float32 else 64
    chunk = registers * 4 * 32 * warps // (block * dtype.itemsize)
    return {"BLOCK": block, "CHUNK": max(1, min(32, chunk)), "num_warps": warps}


@triton.jit
@no_type_check
def current_column(inverse_ptr, vectors_ptr, p, used, d, column, CHUNK: tl.constexpr):
    """Return column p of the row's inverse Hessian after ``used`` eliminations."""
    result = tl.load(inverse_ptr + p * d + column, mask=column < d, other=0)
    # Other threads of the program wrote the last vector.
    tl.debug_barrier()
    for start in range(0, used, CHUNK):
        vector = start + tl.arange(0, CHUNK)
        share = tl.load(vectors_ptr + vector * d + p, mask=vector < used, other=0)
        live = (vector[:, None] < used) & (column[None, :] < d)
        values = tl.load(vectors_ptr + vector[:, None] * d + column[None, :], mask=live, other=0)
        result -= tl.sum(share[:, None] * values, 0)
    return result


@triton.jit
@no_type_check
def pick(values, column, p):
    """Return entry p of a block: registers have no index, so everything else is masked and summed."""
    return tl.sum(tl.where(column == p, values, 0.0), 0)
