"""Which weights to remove, when, and what to do with the rest."""

from mlcomp.addresses import handed_on, shorten
from mlcomp.layerwise.bias_correction import bias_correction
from mlcomp.layerwise.weights import keep_zeros, layer_weights, network_sparsity, with_weights
from mlcomp.prune.at_initialization import connection_sensitivity, snip
from mlcomp.prune.classical import (
    Lasso,
    LassoPath,
    SparsePlusLowRank,
    TreePath,
    alternating_projections,
    choose_alpha,
    cost_complexity_path,
    lasso,
    lasso_path,
    planted_matrix,
    robust_pca,
    tree_leaves,
)
from mlcomp.prune.during_training import GradualPruning, cubic_schedule, gradual_pruning
from mlcomp.prune.importance import global_magnitude, layer_normalized, magnitude, random_pruning, wanda
from mlcomp.prune.pattern import nm_mask, smallest_mask
from mlcomp.prune.post_training import (
    FinetunedLayer,
    adaprune,
    calibrate,
    masked_finetune,
    sparsegpt,
    weight_correction,
)

__all__ = [
    "BestSubset",
    "FinetunedLayer",
    "GradualPruning",
    "Lasso",
    "LassoPath",
    "SparsePlusLowRank",
    "TreePath",
    "adaprune",
    "alternating_projections",
    "best_pruned",
    "best_subset",
    "bias_correction",
    "calibrate",
    "choose_alpha",
    "connection_sensitivity",
    "cost_complexity_path",
    "cubic_schedule",
    "global_magnitude",
    "gradual_pruning",
    "keep_zeros",
    "kept_share",
    "lasso",
    "lasso_path",
    "layer_normalized",
    "layer_weights",
    "magnitude",
    "masked_finetune",
    "network_sparsity",
    "nm_mask",
    "planted_matrix",
    "pruning_snr",
    "random_pruning",
    "robust_pca",
    "smallest_mask",
    "snip",
    "sparsegpt",
    "tree_leaves",
    "wanda",
    "weight_correction",
    "with_weights",
]

# They compare methods, or spread them over a network, and stand above this package now.
__getattr__ = handed_on(
    __name__,
    {
        "BestSubset": "mlcomp.compare.best_subset",
        "best_pruned": "mlcomp.compare.best_subset",
        "best_subset": "mlcomp.compare.best_subset",
        "kept_share": "mlcomp.compare.pruning_snr",
        "pruning_snr": "mlcomp.compare.pruning_snr",
    },
)

shorten(globals())
