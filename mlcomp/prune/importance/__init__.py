"""Which weight or channel matters: scores that need no training."""

from mlcomp.prune.importance.layer_normalized import layer_normalized
from mlcomp.prune.importance.magnitude import global_magnitude, magnitude
from mlcomp.prune.importance.random_pruning import random_pruning
from mlcomp.prune.importance.taylor import channel_importance, channel_loss_changes, weight_importance
from mlcomp.prune.importance.wanda import wanda

__all__ = [
    "channel_importance",
    "channel_loss_changes",
    "global_magnitude",
    "layer_normalized",
    "magnitude",
    "random_pruning",
    "wanda",
    "weight_importance",
]
