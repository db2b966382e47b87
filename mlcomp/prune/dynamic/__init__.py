"""Less work for this input: tokens and activations that it does not need. The weights stay as they are."""

from mlcomp.prune.dynamic.cats import activation_sparsity, activation_thresholds, cats, threshold_mlps
from mlcomp.prune.dynamic.dynamic_vit import Decided, DynamicViT, Selected
from mlcomp.prune.dynamic.relufication import relufication
from mlcomp.prune.dynamic.sparse_gated_mlp import sparse_gated_mlp
from mlcomp.prune.dynamic.token_cost import vit_multiply_adds
from mlcomp.prune.dynamic.token_keeping import TokenPredictor, gumbel_keep, masked_attention, ratio_loss
from mlcomp.prune.dynamic.train_dynamic_vit import DynamicTraining, train_dynamic_vit

__all__ = [
    "Decided",
    "DynamicTraining",
    "DynamicViT",
    "Selected",
    "TokenPredictor",
    "activation_sparsity",
    "activation_thresholds",
    "cats",
    "gumbel_keep",
    "masked_attention",
    "ratio_loss",
    "relufication",
    "sparse_gated_mlp",
    "threshold_mlps",
    "train_dynamic_vit",
    "vit_multiply_adds",
]
