"""Which weights to remove: importance, patterns, baselines."""

from mlcomp.prune.adaprune import adaprune
from mlcomp.prune.best_subset import BestSubset, best_pruned, best_subset
from mlcomp.prune.bias_correction import bias_correction
from mlcomp.prune.calibrate import calibrate
from mlcomp.prune.cubic_schedule import cubic_schedule
from mlcomp.prune.gradual import GradualPruning, gradual_pruning
from mlcomp.prune.layer_normalized import layer_normalized
from mlcomp.prune.magnitude import global_magnitude, magnitude
from mlcomp.prune.masked_finetune import FinetunedLayer, masked_finetune
from mlcomp.prune.network import keep_zeros, layer_weights, network_sparsity, with_weights
from mlcomp.prune.pattern import nm_mask, smallest_mask
from mlcomp.prune.pruning_snr import kept_share, pruning_snr
from mlcomp.prune.random_pruning import random_pruning
from mlcomp.prune.snip import connection_sensitivity, snip
from mlcomp.prune.wanda import wanda
from mlcomp.prune.weight_correction import weight_correction

__all__ = [
    "BestSubset",
    "FinetunedLayer",
    "GradualPruning",
    "adaprune",
    "best_pruned",
    "best_subset",
    "bias_correction",
    "calibrate",
    "connection_sensitivity",
    "cubic_schedule",
    "global_magnitude",
    "gradual_pruning",
    "keep_zeros",
    "kept_share",
    "layer_normalized",
    "layer_weights",
    "magnitude",
    "masked_finetune",
    "network_sparsity",
    "nm_mask",
    "pruning_snr",
    "random_pruning",
    "smallest_mask",
    "snip",
    "wanda",
    "weight_correction",
    "with_weights",
]
