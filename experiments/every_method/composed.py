"""Layer-wise methods whose result no single format of the library holds; each gives its own account of its size."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mlcomp.cost import stored_nbytes
from mlcomp.formats import TwoFour
from mlcomp.prune import alternating_projections, channel_permutation, magnitude


@dataclass(frozen=True)
class Permuted:
    """A 2:4 weight whose columns stand in another order.

    Attributes:
        packed: with permuted columns. order: column i of it is column order[i] of the weight.
    """

    packed: TwoFour
    order: Tensor

    def dequantize(self) -> Tensor:
        """Return the weight with its columns in their places."""
        return self.packed.dequantize().float()[:, self.order.argsort()]

    @property
    def nbytes(self) -> int:
        """The order costs nothing where the layer before can write its outputs in it, as the paper does."""
        return self.packed.nbytes


def permuted_two_four(weight: Tensor, hessian: Tensor, *, search: str) -> Permuted:
    """Search the order of the columns under which 2:4 keeps most, then prune by magnitude."""
    order = channel_permutation(weight, search=search)
    return Permuted(TwoFour.from_dense(magnitude(weight[:, order].half(), pattern=(2, 4))), order)


@dataclass(frozen=True)
class Sum:
    """A sparse matrix plus the product of two thin ones, all in float16."""

    sparse: Tensor
    left: Tensor
    right: Tensor

    def dequantize(self) -> Tensor:
        """Return the sum."""
        return self.sparse.float() + self.left.float() @ self.right.float()

    @property
    def nbytes(self) -> int:
        """The values and places of the sparse part, and both factors."""
        return stored_nbytes(self.sparse) + self.left.nbytes + self.right.nbytes


def sparse_plus_low_rank(weight: Tensor, hessian: Tensor, *, rank: int, sparsity: float) -> Sum:
    """Split a weight into a sparse part and one of low rank; the rest is left out."""
    nonzeros = round((1 - sparsity) * weight.numel())
    made = alternating_projections(weight, rank=rank, nonzeros=nonzeros, max_steps=10)
    u, sigma, vh = torch.linalg.svd(made.low_rank.float(), full_matrices=False)
    scale = sigma[:rank].sqrt()
    return Sum(made.sparse.half(), (u[:, :rank] * scale).half(), (scale[:, None] * vh[:rank]).half())
