"""Pruning while the network trains."""

from mlcomp.prune.during_training.cubic_schedule import cubic_schedule
from mlcomp.prune.during_training.gradual import GradualPruning, gradual_pruning
from mlcomp.prune.during_training.rigl import rigl
from mlcomp.prune.during_training.sparse_evolution import sparse_evolution
from mlcomp.prune.during_training.sparse_training import SparseTraining

__all__ = [
    "GradualPruning",
    "SparseTraining",
    "cubic_schedule",
    "gradual_pruning",
    "rigl",
    "sparse_evolution",
]
