"""Pruning of a trained network, and mending what is left from a few calibration inputs."""

from mlcomp.prune.post_training.adaprune import adaprune
from mlcomp.prune.post_training.calibrate import calibrate
from mlcomp.prune.post_training.masked_finetune import FinetunedLayer, masked_finetune
from mlcomp.prune.post_training.sparsegpt import sparsegpt
from mlcomp.prune.post_training.weight_correction import weight_correction

__all__ = [
    "FinetunedLayer",
    "adaprune",
    "calibrate",
    "masked_finetune",
    "sparsegpt",
    "weight_correction",
]
