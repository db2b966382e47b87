"""Pruning while the network trains."""

from mlcomp.prune.during_training.cubic_schedule import cubic_schedule
from mlcomp.prune.during_training.gradual import GradualPruning, gradual_pruning

__all__ = [
    "GradualPruning",
    "cubic_schedule",
    "gradual_pruning",
]
