"""Which weight matters: scores that need no training."""

from mlcomp.prune.importance.channel_permutation import channel_permutation, kept_magnitude, permutation_efficacy
from mlcomp.prune.importance.granularity import group_magnitude
from mlcomp.prune.importance.layer_normalized import layer_normalized
from mlcomp.prune.importance.magnitude import global_magnitude, magnitude
from mlcomp.prune.importance.random_pruning import random_pruning
from mlcomp.prune.importance.wanda import wanda

__all__ = [
    "channel_permutation",
    "global_magnitude",
    "group_magnitude",
    "kept_magnitude",
    "layer_normalized",
    "magnitude",
    "permutation_efficacy",
    "random_pruning",
    "wanda",
]
