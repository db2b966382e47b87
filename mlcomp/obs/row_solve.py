r"""One linear system per row, on the row's own subset of a shared matrix, in batches of bounded memory.

Syllabus: 2.05
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# Bytes of systems that a CPU solves together, at most: where they do not fit into its cache, the passes over them
# take longer than the arithmetic.
CACHE = 2**23


def solve_on_subsets(
    matrix: Float[Tensor, "d d"],
    subset: Bool[Tensor, "rows d"],
    target: Float[Tensor, "rows d"],
    *,
    tolerance: float | None,
    max_bytes: int,
) -> Float[Tensor, "rows d"]:
    r"""Solve $A_{S_r S_r} x_{S_r} = b_{r,S_r}$ for each row r; x is zero outside the row's subset $S_r$.

    Args:
        matrix: A, (d, d), symmetric, float64.
        subset: (rows, d), True on $S_r$; rows may differ in size.
        target: b, (rows, d); only the entries on the subset matter.
        tolerance: A counts as singular on the subset when, scaled to a unit diagonal, its smallest eigenvalue is not
            above this: what rounding leaves of a zero. None: A itself is known to be regular, and then so are its
            parts, whose eigenvalues lie between its own.
        max_bytes: bound on the working memory; at least one row is solved at a time.
    Raises:
        ValueError: $A_{S_r S_r}$ is not positive definite beyond ``tolerance`` in some row.
    Cost: |S|³/3 FLOPs a row, by Cholesky; rows of similar size are solved together.
    """
    count = subset.sum(1)
    solution = torch.zeros_like(target)
    by_size = count.argsort(descending=True).tolist()
    room = min(max_bytes, CACHE) if matrix.device.type == "cpu" else max_bytes
    while by_size:
        size = int(count[by_size[0]])
        if size == 0:
            break
        # Whole rows of the matrix, and about three arrays of size²: the submatrix, its factor and a copy.
        together = max(1, room // (8 * size * (len(matrix) + 3 * size)))
        rows = torch.tensor(by_size[:together], device=matrix.device)
        by_size = by_size[together:]
        # Columns of the subset first; rows with fewer than `size` are filled up with equations x = 0.
        index = (~subset[rows]).to(torch.int8).argsort(dim=1, stable=True)[:, :size]
        filler = torch.arange(size, device=matrix.device) >= count[rows][:, None]
        part = matrix[index].gather(2, index[:, None].expand(-1, size, -1))
        part.masked_fill_(filler[:, :, None] | filler[:, None, :], 0)
        part.diagonal(dim1=1, dim2=2).masked_fill_(filler, 1)
        factor, info = torch.linalg.cholesky_ex(part)
        singular = info > 0
        if tolerance is not None:
            singular |= ~(_inverse_norm(factor, part, filler) * tolerance < 1)
        if singular.any():
            raise ValueError(
                f"the Hessian is singular on the inputs that row {int(rows[singular][0])} solves for: "
                f"use more calibration samples, or a positive damp (0.01 is usual)"
            )
        right = target[rows].gather(1, index).masked_fill(filler, 0)
        found = torch.cholesky_solve(right[:, :, None], factor)[:, :, 0]
        solution[rows] = torch.zeros_like(target[rows]).scatter_(1, index, found)
    return solution


def _inverse_norm(factor: Tensor, part: Tensor, filler: Tensor) -> Tensor:
    """Estimate 1/λ_min of each matrix scaled to a unit diagonal, from below, by two steps of inverse iteration.

    Where rounding is all that keeps λ_min from zero it stands far apart from the others, and two steps find it.
    """
    scale = part.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()[:, :, None]
    noise = torch.randn(scale.shape[1], generator=torch.Generator().manual_seed(0), dtype=scale.dtype)
    start = noise.to(scale.device)[None, :, None] * (~filler)[:, :, None]
    first = scale * torch.cholesky_solve(scale * start, factor)
    second = scale * torch.cholesky_solve(scale * first, factor)
    return (second.norm(dim=1) / first.norm(dim=1).clamp(min=torch.finfo(scale.dtype).tiny))[:, 0]
