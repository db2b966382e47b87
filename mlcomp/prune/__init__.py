"""Which weights to remove, when, and what to do with the rest."""

from mlcomp.addresses import handed_on, shorten
from mlcomp.layerwise.bias_correction import bias_correction
from mlcomp.layerwise.weights import keep_zeros, layer_weights, network_sparsity, with_weights
from mlcomp.prune.at_initialization import connection_sensitivity, snip
from mlcomp.prune.during_training import GradualPruning, cubic_schedule, gradual_pruning
from mlcomp.prune.importance import (
    channel_importance,
    channel_loss_changes,
    global_magnitude,
    layer_normalized,
    magnitude,
    random_pruning,
    wanda,
    weight_importance,
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
    Slimmed,
    dependency_groups,
    find_group,
    fixed_channels,
    group_weights,
    network_slimming,
    remove_channels,
    slimming_channels,
    train_gammas,
)

__all__ = [
    "BestSubset",
    "FinetunedLayer",
    "GradualPruning",
    "Group",
    "Member",
    "Slimmed",
    "adaprune",
    "best_pruned",
    "best_subset",
    "bias_correction",
    "calibrate",
    "channel_importance",
    "channel_loss_changes",
    "connection_sensitivity",
    "cubic_schedule",
    "dependency_groups",
    "find_group",
    "fixed_channels",
    "global_magnitude",
    "gradual_pruning",
    "group_weights",
    "keep_zeros",
    "kept_share",
    "layer_normalized",
    "layer_weights",
    "magnitude",
    "masked_finetune",
    "network_slimming",
    "network_sparsity",
    "nm_mask",
    "pruning_snr",
    "random_pruning",
    "remove_channels",
    "slimming_channels",
    "smallest_mask",
    "snip",
    "sparsegpt",
    "train_gammas",
    "wanda",
    "weight_correction",
    "weight_importance",
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
