r"""WoodFisher: Optimal Brain Surgeon with the inverse of a block-diagonal empirical Fisher matrix.

Notation: w weights (n,), G gradients (m, n), a row $g_s$ per sample, $F = \lambda I + \tfrac1m G^\top G$ or its
diagonal blocks, Q what is removed, $\rho_q = \tfrac12 w_q^2/[F^{-1}]_{qq}$ the saliency.
Source: Singh, Alistarh 2020, arXiv:2004.14340, sections 3 (the inverse) and 4 (pruning); the recursion is that of
Hassibi, Stork 1992.   Syllabus: 3.10
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mlcomp.checks import check_choice, check_matrix, check_positive, check_whole, narrowed
from mlcomp.context import isolated
from mlcomp.obs.fisher_inverse import add_outer_products
from mlcomp.obs.fisher_removal import UPDATES, check_damping, removal_problem


@dataclass(frozen=True)
class BlockInverse:
    r"""The inverse of a block-diagonal matrix over n weights.

    Attributes:
        blocks: (blocks, b, b) float64, the inverses. The last block may reach beyond n; there it is $I/\lambda$.
        size: n.
    """

    blocks: Float[Tensor, "blocks b b"]
    size: int

    @isolated
    def diagonal(self) -> Float[Tensor, " n"]:
        r"""Return $[F^{-1}]_{ii}$ of each weight."""
        return self.blocks.diagonal(dim1=1, dim2=2).flatten()[: self.size]

    @isolated
    def product(self, vector: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        r"""Return $F^{-1}x$."""
        return (self.blocks @ self.split(vector)[..., None]).flatten()[: self.size]

    @isolated
    def dense(self) -> Float[Tensor, "n n"]:
        r"""Return $F^{-1}$ with its zeros."""
        return torch.block_diag(*self.blocks)[: self.size, : self.size]

    def split(self, vector: Tensor) -> Tensor:
        """Return a vector (n,) by block, (blocks, b), with zeros after its end."""
        blocks, b, _ = self.blocks.shape
        return torch.nn.functional.pad(vector, (0, blocks * b - self.size)).view(blocks, b)


@isolated
def block_fisher_inverse(
    gradients: Float[Tensor, "samples n"], *, damping: float, block_size: int | None = None
) -> BlockInverse:
    r"""Return the inverse of each diagonal block of $\lambda I + \tfrac1m\sum_s g_sg_s^\top$.

    Args:
        gradients: (m, n), a gradient of the loss per sample or per mini-batch; not modified.
        damping: λ > 0, absolute.
        block_size: b consecutive weights make a block, and the last one is filled up; None: all weights, which is
            :func:`fisher_inverse`.
    Raises:
        ValueError: malformed gradients, damping ≤ 0 or lost to rounding beside them, block_size < 1.
    Guarantee: each block equals the direct inverse up to rounding.
    Cost: 4·m·n·b FLOPs and n·b numbers, all blocks at once: linear in n.
    """
    check_matrix("gradients", gradients)
    check_positive("damping", damping)
    samples, n = gradients.shape
    if block_size is not None:
        check_whole("block_size", block_size, 1)
    b = block_size or n
    count = -(-n // b)
    padded = torch.nn.functional.pad(gradients.detach().double(), (0, count * b - n))
    vectors = padded.view(samples, count, b).movedim(1, 0)
    check_damping(vectors, damping)
    return BlockInverse(add_outer_products(vectors, damping), n)


@isolated
def woodfisher(
    weights: Float[Tensor, " n"],
    gradients: Float[Tensor, "samples n"],
    *,
    sparsity: float,
    damping: float,
    block_size: int | None = None,
    update: str = "sum",
    prunable: Bool[Tensor, " n"] | None = None,
) -> Float[Tensor, " n"]:
    r"""Remove the weights of least $\tfrac12 w_q^2/[F^{-1}]_{qq}$ and move the others to make up for them.

    Args:
        weights: (n,), all weights in one vector, any float dtype; not modified.
        gradients: (m, n), a gradient of the loss per sample at these weights; not modified. With gradients of
            mini-batches F shrinks as the batch grows, and λ with it should.
        sparsity: share of the prunable weights that are zero afterwards.
        damping: λ > 0, absolute. A large one makes the saliency that of magnitude and the update none at all.
        block_size: as in :func:`block_fisher_inverse`.
        update: how the others move. "sum": the steps of single removals, added (the paper's, and what public code
            does); "joint": $\delta = -[F^{-1}]_{:,Q}([F^{-1}]_{QQ})^{-1}w_Q$, the least predicted loss for this
            choice of Q; "none": they stay.
        prunable: True where a weight may be removed; others move only. None: all.
    Returns:
        The new weights in the dtype of ``weights``.
    Raises:
        ValueError: malformed arguments, damping as in :func:`block_fisher_inverse`.
    Guarantee: removals(sparsity, prunable) weights are zero, or those that were, if these are more. Prunable weights
        that are zero count as removed: their gradients take no part, they don't move and they don't come back.
    Deviations: the gradient of the whole loss is taken as zero, as in the paper's experiments.
    """
    check_choice("update", update, UPDATES)
    problem = removal_problem(weights, gradients, prunable, sparsity)
    inverse = block_fisher_inverse(problem.gradients, damping=damping, block_size=block_size)
    removed = problem.least(problem.weights.square() / inverse.diagonal() / 2)
    return narrowed(problem.weights + block_step(problem.weights, removed, inverse, update), weights.dtype)


def block_step(w: Tensor, removed: Tensor, inverse: BlockInverse, update: str, group_size: int = 1) -> Tensor:
    """Return δ with δ_Q = −w_Q: the step that removes Q, in groups whose single steps are joint ones."""
    lost = w * removed
    if update == "none":
        return -lost
    # In B the rows and columns of what stays are those of the identity, so they take no part in the solution.
    taken = inverse.split(removed)
    both = taken[:, :, None] & taken[:, None, :]
    if update == "sum" and group_size > 1:
        group = torch.arange(taken.shape[1], device=w.device) // group_size
        both = both & (group[:, None] == group)
    elif update == "sum":
        both = torch.diag_embed(taken)
    b = torch.where(both, inverse.blocks, torch.diag_embed((~taken).to(w.dtype)))
    solved = torch.linalg.solve(b, inverse.split(lost)[..., None])
    step = -(inverse.blocks @ solved).flatten()[: inverse.size]
    return torch.where(removed, -w, step)
