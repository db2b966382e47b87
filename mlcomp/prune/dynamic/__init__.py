"""Less work for this input: tokens and activations that it does not need. The weights stay as they are."""

from mlcomp.prune.dynamic.cats import activation_sparsity, activation_thresholds, cats, threshold_mlps
from mlcomp.prune.dynamic.relufication import relufication
from mlcomp.prune.dynamic.sparse_gated_mlp import sparse_gated_mlp

__all__ = [
    "activation_sparsity",
    "activation_thresholds",
    "cats",
    "relufication",
    "sparse_gated_mlp",
    "threshold_mlps",
]
