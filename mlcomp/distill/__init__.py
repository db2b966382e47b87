"""Teacher and student: a network learns from the outputs and layers of another."""

from mlcomp.distill.born_again import born_again, ensemble_log_probabilities
from mlcomp.distill.compressed_student import compressed_student
from mlcomp.distill.hint_projection import hint_projection
from mlcomp.distill.hints import Hinted, hint_loss, train_hints
from mlcomp.distill.layer_by_layer import LayerByLayer, layer_by_layer
from mlcomp.distill.soft_targets import distillation_loss, soft_target_loss, soft_targets
from mlcomp.distill.train_student import Taught, train_student

__all__ = [
    "Hinted",
    "LayerByLayer",
    "Taught",
    "born_again",
    "compressed_student",
    "distillation_loss",
    "ensemble_log_probabilities",
    "hint_loss",
    "hint_projection",
    "layer_by_layer",
    "soft_target_loss",
    "soft_targets",
    "train_hints",
    "train_student",
]
