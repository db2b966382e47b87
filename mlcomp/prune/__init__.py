"""Which weights to remove: importance, patterns, baselines."""

from mlcomp.prune.adaprune import adaprune
from mlcomp.prune.cubic_schedule import cubic_schedule
from mlcomp.prune.gradual import GradualPruning, gradual_pruning
from mlcomp.prune.layer_normalized import layer_normalized
from mlcomp.prune.magnitude import global_magnitude, magnitude
from mlcomp.prune.network import keep_zeros, layer_weights, network_sparsity, with_weights
from mlcomp.prune.pattern import nm_mask, smallest_mask
from mlcomp.prune.random_pruning import random_pruning
from mlcomp.prune.snip import connection_sensitivity, snip
from mlcomp.prune.wanda import wanda

__all__ = [
    "GradualPruning",
    "adaprune",
    "connection_sensitivity",
    "cubic_schedule",
    "global_magnitude",
    "gradual_pruning",
    "keep_zeros",
    "layer_normalized",
    "layer_weights",
    "magnitude",
    "network_sparsity",
    "nm_mask",
    "random_pruning",
    "smallest_mask",
    "snip",
    "wanda",
    "with_weights",
]
