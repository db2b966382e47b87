"""Which weights to remove: importance, patterns, baselines."""

from mlcomp.prune.adaprune import adaprune
from mlcomp.prune.magnitude import global_magnitude, magnitude
from mlcomp.prune.pattern import nm_mask, smallest_mask
from mlcomp.prune.wanda import wanda

__all__ = ["adaprune", "global_magnitude", "magnitude", "nm_mask", "smallest_mask", "wanda"]
