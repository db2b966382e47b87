"""Which weights to remove, when, and what to do with the rest."""

from mlcomp.addresses import handed_on, shorten
from mlcomp.layerwise.bias_correction import bias_correction
from mlcomp.layerwise.weights import keep_zeros, layer_weights, network_sparsity, with_weights
from mlcomp.prune.at_initialization import (
    Ticket,
    connection_sensitivity,
    erdos_renyi,
    erdos_renyi_densities,
    gradient_flow,
    grasp,
    lottery_tickets,
    shuffled_zeros,
    snip,
)
from mlcomp.prune.during_training import (
    GradualPruning,
    SparseTraining,
    cubic_schedule,
    gradual_pruning,
    rigl,
    sparse_evolution,
)
from mlcomp.prune.importance import (
    channel_permutation,
    global_magnitude,
    group_magnitude,
    kept_magnitude,
    layer_normalized,
    magnitude,
    permutation_efficacy,
    random_pruning,
    wanda,
)
from mlcomp.prune.pattern import nm_mask, smallest_mask
from mlcomp.prune.post_training import (
    FinetunedLayer,
    adaprune,
    calibrate,
    masked_finetune,
    sparsegpt,
    weight_correction,
)
from mlcomp.prune.structured import (
    Group,
    Member,
    dependency_groups,
    find_group,
    fixed_channels,
    group_weights,
    permute_channels,
    remove_channels,
)

__all__ = [
    "BestSubset",
    "FinetunedLayer",
    "GradualPruning",
    "Group",
    "Member",
    "SparseTraining",
    "Ticket",
    "adaprune",
    "best_pruned",
    "best_subset",
    "bias_correction",
    "calibrate",
    "channel_permutation",
    "connection_sensitivity",
    "cubic_schedule",
    "dependency_groups",
    "erdos_renyi",
    "erdos_renyi_densities",
    "find_group",
    "fixed_channels",
    "global_magnitude",
    "gradient_flow",
    "gradual_pruning",
    "grasp",
    "group_magnitude",
    "group_weights",
    "keep_zeros",
    "kept_magnitude",
    "kept_share",
    "layer_normalized",
    "layer_weights",
    "lottery_tickets",
    "magnitude",
    "masked_finetune",
    "network_sparsity",
    "nm_mask",
    "permutation_efficacy",
    "permute_channels",
    "pruning_snr",
    "random_pruning",
    "remove_channels",
    "rigl",
    "shuffled_zeros",
    "smallest_mask",
    "snip",
    "sparse_evolution",
    "sparsegpt",
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
