r"""For points on their own, each with its scale and metric: the sum of codebook entries that is nearest.

Notation: x a point, s its scale, A its metric (dim, dim); codes b that make $\delta A \delta^\top$ small,
$\delta = x/s - \sum_c C_c[b_c]$.
Source: Malinovskii et al. 2024, arXiv:2405.14852, section 3; the beam is that of Egiazarian et al. 2024,
arXiv:2401.06118, section 3.2, without the products between groups.
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mlcomp.formats.additive_codebook import AdditiveCodes


def nearest_codes(
    target: Float[Tensor, "points dim"],
    start: AdditiveCodes,
    *,
    metric: Float[Tensor, "#points dim dim"] | None = None,
    beam: int = 4,
) -> UInt8[Tensor, "points books"]:
    """Return for each point the codes whose sum, times the point's scale, is nearest to it.

    Args:
        target: (points, dim).
        start: (points, 1, books) codes to begin from, codebooks, and a scale for each point.
        metric: (points or 1, dim, dim) of each point's distance; None: Euclidean.
        beam: sums kept from codebook to codebook, in two sweeps over them.
    Guarantee: with one codebook the codes are the best; no point ends farther away than it began. A point whose scale
        is zero keeps its codes.
    """
    books = start.codebooks.to(target)
    count, entries, dim = books.shape
    if metric is None:
        metric = torch.eye(dim, dtype=target.dtype, device=target.device)[None]
    kept = start.codes  # (points, kept, books)
    zero = start.scale == 0
    scaled = target / torch.where(zero, 1, start.scale)[:, None]
    point = torch.arange(len(target), device=target.device)[:, None]
    for step in range(2 * count if count > 1 else 1):
        c = step % count
        if c == 0:
            kept = kept[:, :1]  # the best; a sweep from several would reach the same sums twice
        others = sum(books[o][kept[:, :, o].long()] for o in range(count) if o != c)
        rest = scaled[:, None] - others
        far = torch.einsum("pkd,pde,pke->pk", rest, metric.expand(len(target), dim, dim), rest)
        cross = (rest @ metric) @ books[c].T
        square = torch.einsum("ed,pdf,ef->pe", books[c], metric, books[c])
        score = far[:, :, None] - 2 * cross + square[:, None]
        index = score.flatten(1).topk(min(beam, score[0].numel()), dim=1, largest=False).indices
        kept = kept[point, index // entries].clone()
        kept[:, :, c] = (index % entries).to(torch.uint8)
    return torch.where(zero[:, None], start.codes[:, 0], kept[:, 0])
