r"""The Optimal BERT Surgeon (oBERT): WoodFisher in small blocks, for groups of weights that go together.

Notation: as in :mod:`mlcomp.obs.woodfisher`; Q a group of consecutive weights inside a block,
$\rho_Q = \tfrac12 w_Q^\top([F^{-1}]_{QQ})^{-1}w_Q$ its saliency and
$\delta_Q = -[F^{-1}]_{:,Q}([F^{-1}]_{QQ})^{-1}w_Q$ its step.
Source: Kurtic et al. 2022, arXiv:2203.07259, section 3 (the saliency and step of a group, blocks of F).
Syllabus: 3.10
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mlcomp.checks import check_choice, check_vector, check_whole, narrowed, removals
from mlcomp.context import isolated
from mlcomp.obs.fisher_removal import UPDATES, removal_problem
from mlcomp.obs.woodfisher import BlockInverse, block_fisher_inverse, block_step
from mlcomp.prune.pattern import smallest_mask


@isolated
def obert_saliency(
    weights: Float[Tensor, " n"], inverse: BlockInverse, *, group_size: int
) -> Float[Tensor, " groups"]:
    r"""Return $\tfrac12 w_Q^\top([F^{-1}]_{QQ})^{-1}w_Q$ of each group of consecutive weights, float64.

    Args:
        weights: (n,); not modified.
        inverse: from :func:`block_fisher_inverse`.
        group_size: weights in a group, a divisor of the block's; the last group may be short.
    Raises:
        ValueError: malformed weights, another length than the inverse, a group_size that does not divide the block.
    Guarantee: with groups of one this is WoodFisher's saliency; it is never below that of any member alone.
    """
    check_vector("weights", weights)
    check_whole("group_size", group_size, 1)
    blocks, b, _ = inverse.blocks.shape
    if len(weights) != inverse.size:
        raise ValueError(f"weights must have the inverse's {inverse.size} entries, got {len(weights)}")
    if b % group_size:
        raise ValueError(f"group_size must divide the block of {b} weights, got {group_size}")
    w = inverse.split(weights.detach().double()).view(blocks, -1, group_size, 1)
    corners = inverse.blocks.view(blocks, b // group_size, group_size, b // group_size, group_size)
    own = corners.diagonal(dim1=1, dim2=3).movedim(-1, 1)
    cost = (w * torch.linalg.solve(own, w)).sum((2, 3)).flatten() / 2
    return cost[: -(-inverse.size // group_size)]


@isolated
def obert(
    weights: Float[Tensor, " n"],
    gradients: Float[Tensor, "samples n"],
    *,
    sparsity: float,
    damping: float,
    block_size: int = 50,
    group_size: int = 1,
    update: str = "sum",
    prunable: Bool[Tensor, " n"] | None = None,
) -> Float[Tensor, " n"]:
    r"""Remove the groups of least saliency and move the other weights of their blocks to make up for them.

    Args:
        weights, gradients, damping: as in :func:`woodfisher`.
        sparsity: share of the prunable groups that are zero afterwards. A group is prunable if all its weights are.
        block_size: consecutive weights whose curvature is seen together; 50 in the paper.
        group_size: consecutive weights that go together, a divisor of ``block_size``; 4 fits the paper's hardware.
        update: "sum": the steps of the groups, each joint within its group, added (the paper's); "joint": one step
            for all that is removed; "none".
        prunable: True where a weight may be removed. None: all.
    Returns:
        The new weights in the dtype of ``weights``.
    Raises:
        ValueError: malformed arguments, a group_size that does not divide the block, and as :func:`woodfisher`.
    Guarantee: removals(sparsity, prunable groups) groups are zero, or those that were, if these are more. Equal to
        :func:`woodfisher` for groups of one.
    Cost: 4·m·n·b FLOPs, n·b numbers.
    """
    check_choice("update", update, UPDATES)
    check_whole("block_size", block_size, 1)
    check_whole("group_size", group_size, 1)
    if block_size % group_size:
        raise ValueError(f"group_size must divide block_size {block_size}, got {group_size}")
    problem = removal_problem(weights, gradients, prunable, sparsity)
    n = len(problem.weights)
    groups = -(-n // group_size)

    def whole(mask: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(mask, (0, groups * group_size - n), value=True)
        return padded.view(groups, group_size).all(1)

    b = min(block_size, groups * group_size)
    inverse = block_fisher_inverse(problem.gradients, damping=damping, block_size=b)
    cost = obert_saliency(problem.weights, inverse, group_size=group_size)
    prunable_groups, gone = whole(problem.prunable), whole(problem.gone)
    cost = cost.masked_fill(gone, -torch.inf).masked_fill(~prunable_groups, torch.inf)
    chosen = smallest_mask(cost, removals(sparsity, int(prunable_groups.sum())))
    removed = chosen.repeat_interleave(group_size)[:n] | problem.gone
    step = block_step(problem.weights, removed, inverse, update, group_size)
    return narrowed(problem.weights + step, weights.dtype)
