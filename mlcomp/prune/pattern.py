r"""Which entries to remove, given a score for each: exact counts, exact ties, n:m patterns.

Every pruner of the course decides with these two functions, so that ties and ragged widths mean the same
everywhere. Both return True where an entry is *removed*; the mask of kept weights is its complement.

Notation: n:m means n zeros in every m consecutive inputs.
Source: Mishra et al. 2021, arXiv:2104.08378, section 3 (2:4).   Syllabus: 2.06
"""

import functools

import torch
from jaxtyping import Bool, Shaped, UInt8
from torch import Tensor

from mlcomp.checks import check_pattern, check_tensor, check_whole
from mlcomp.context import isolated

# Rows of so few entries are ordered by comparing all pairs.
FEW = 8


@isolated
def smallest_mask(scores: Shaped[Tensor, "*rows n"], count: int) -> Bool[Tensor, "*rows n"]:
    """Mark the ``count`` smallest scores of each row (the last dimension).

    Args:
        scores: (…, n), any real dtype, infinities allowed; not modified. For a choice over a whole matrix pass
            ``scores.reshape(1, -1)``.
        count: entries to mark in each row, 0 … n.
    Returns:
        True at exactly ``count`` entries of each row. Equal scores: the lowest index is marked first.
    Raises:
        ValueError: no dimension, NaN among the scores, count outside 0 … n.
    Guarantee: exactly ``count`` marks in each row, and no unmarked score is smaller than a marked one.
    Cost: one selection of the count-th smallest of each row, without sorting it.
    """
    check_tensor("scores", scores)
    if scores.ndim == 0:
        raise ValueError("scores must have at least one dimension, got a single number")
    if torch.isnan(scores).any():
        raise ValueError("scores hold NaN, which has no place in an order")
    n = scores.shape[-1]
    check_whole("count", count, 0, n)
    if count in (0, n):
        return torch.full(scores.shape, count > 0, dtype=torch.bool, device=scores.device)
    if n <= FEW:
        return _ranks(scores) < count
    if scores.dtype not in (torch.float32, torch.float64):  # what torch selects from on every device
        order = scores.argsort(dim=-1, stable=True)
        return torch.zeros(scores.shape, dtype=torch.bool, device=scores.device).scatter(-1, order[..., :count], True)
    limit = scores.kthvalue(count, dim=-1, keepdim=True).values
    mask, ties = scores < limit, scores == limit
    missing = count - mask.sum(-1, keepdim=True)
    if not torch.equal(ties.sum(-1, keepdim=True), missing):
        ties &= ties.cumsum(-1) <= missing
    return mask | ties


def _ranks(scores: Shaped[Tensor, "*rows n"]) -> UInt8[Tensor, "*rows n"]:
    """Return how many entries of its row come before each: all pairs are compared, for there are few."""
    n, more = scores.shape[-1], [1] * (scores.ndim - 1)
    entries = scores.movedim(-1, 0)  # sums over the first dimension are the fast ones
    pairs, after = _pairs(n, scores.device)
    # Of two entries the one with the lower index comes first where it is not larger, else the other one.
    first = (entries[:, None] <= entries[None]) & pairs.view(n, n, *more)
    ranks = first.sum(0, dtype=torch.uint8) - first.sum(1, dtype=torch.uint8)  # below 0 they wrap, and come back
    return ranks.add_(after.view(n, *more)).movedim(0, -1)


@functools.lru_cache(maxsize=32)
def _pairs(n: int, device: torch.device) -> tuple[Bool[Tensor, "n n"], UInt8[Tensor, " n"]]:
    """Return which pairs of n entries are in their order, and how many entries are after each."""
    with torch.inference_mode(False):  # a tensor made within it could not be used outside
        ones = torch.ones(n, n, dtype=torch.bool, device=device).triu(1)
        return ones, ones.sum(1, dtype=torch.uint8)


@isolated
def nm_mask(scores: Shaped[Tensor, "*rows n"], pattern: tuple[int, int]) -> Bool[Tensor, "*rows n"]:
    """Mark the n smallest scores in every m consecutive entries of each row.

    Args:
        scores: (…, width), any real dtype; not modified.
        pattern: (n, m).
    Returns:
        True at exactly n entries of each whole block of m. Where m does not divide the width, the last, short
        block of t < m entries gets floor(n·t/m) marks: never denser in zeros than the pattern allows.
        Equal scores: the lowest index is marked first.
    Raises:
        ValueError: NaN among the scores, or a pattern outside 0 ≤ n ≤ m, m ≥ 1.
    """
    check_pattern(pattern)
    check_tensor("scores", scores)
    if scores.ndim == 0:
        raise ValueError("scores must have at least one dimension, got a single number")
    zeros, block = pattern
    width = scores.shape[-1]
    whole = width - width % block
    blocks = scores[..., :whole].unflatten(-1, (whole // block, block))
    marked = smallest_mask(blocks, zeros).flatten(-2)
    if whole == width:
        return marked
    tail = smallest_mask(scores[..., whole:], zeros * (width - whole) // block)
    return torch.cat([marked, tail], dim=-1)
