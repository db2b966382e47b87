"""Which weight matters: scores that need no training."""

from mlcomp.prune.importance.granularity import group_magnitude
from mlcomp.prune.importance.layer_normalized import layer_normalized
from mlcomp.prune.importance.magnitude import global_magnitude, magnitude
from mlcomp.prune.importance.random_pruning import random_pruning
from mlcomp.prune.importance.wanda import wanda

__all__ = [
    "global_magnitude",
    "group_magnitude",
    "layer_normalized",
    "magnitude",
    "random_pruning",
    "wanda",
]
