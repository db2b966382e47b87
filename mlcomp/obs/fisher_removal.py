"""What WoodFisher, M-FAC and oBERT share: which weights may go, which are gone, how much damping float64 needs."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mlcomp.checks import check_mask, check_matrix, check_sparsity, check_vector, removals
from mlcomp.prune.pattern import smallest_mask

UPDATES = ("sum", "joint", "none")
# Below this share of a block's mean squared gradient the differences that make the inverse are rounding.
LEAST_DAMPING = 1e-12


@dataclass(frozen=True)
class RemovalProblem:
    """Weights and gradients in float64; the gradients of removed weights are zero, so these couple with nothing."""

    weights: Float[Tensor, " n"]
    gradients: Float[Tensor, "samples n"]
    prunable: Bool[Tensor, " n"]
    gone: Bool[Tensor, " n"]
    sparsity: float

    def least(self, saliency: Float[Tensor, " n"]) -> Bool[Tensor, " n"]:
        """Mark the prunable weights of least saliency, up to the sparsity; what is gone goes first."""
        ranked = saliency.masked_fill(self.gone, -torch.inf).masked_fill(~self.prunable, torch.inf)
        return smallest_mask(ranked, removals(self.sparsity, int(self.prunable.sum()))) | self.gone


def removal_problem(weights: Tensor, gradients: Tensor, prunable: Tensor | None, sparsity: float) -> RemovalProblem:
    """Check the arguments that all three methods share."""
    check_vector("weights", weights)
    check_matrix("gradients", gradients)
    check_sparsity(sparsity)
    if gradients.shape[1] != len(weights):
        raise ValueError(
            f"gradients must be (samples, {len(weights)}) for {len(weights)} weights, got {tuple(gradients.shape)}"
        )
    if prunable is None:
        prunable = torch.ones_like(weights, dtype=torch.bool)
    check_mask("prunable", prunable, weights)
    w = weights.detach().double()
    gone = prunable & (w == 0)
    return RemovalProblem(w, gradients.detach().double().masked_fill(gone, 0), prunable, gone, sparsity)


def check_damping(vectors: Float[Tensor, "blocks samples n"], damping: float) -> None:
    """Raise where λ is so small beside the gradients that the inverse would be lost to rounding."""
    largest = float(vectors.square().sum(-1).mean(-1).max())
    if damping < LEAST_DAMPING * largest:
        raise ValueError(
            f"damping must be at least {LEAST_DAMPING:g} of the gradients' mean squared norm {largest:.3g}, got "
            f"{damping:g}: the inverse would be lost to rounding"
        )
