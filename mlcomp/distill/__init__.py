"""Teacher and student: a network learns from the outputs and layers of another."""

from mlcomp.distill.born_again import born_again, ensemble_log_probabilities
from mlcomp.distill.cofi import CoFi, CoFiSteps, cofi
from mlcomp.distill.compressed_student import compressed_student
from mlcomp.distill.hint_projection import hint_projection
from mlcomp.distill.hints import Hinted, hint_loss, train_hints
from mlcomp.distill.soft_targets import distillation_loss, soft_target_loss, soft_targets
from mlcomp.distill.train_student import Taught, train_student

__all__ = [
    "CoFi",
    "CoFiSteps",
    "Hinted",
    "Taught",
    "born_again",
    "cofi",
    "compressed_student",
    "distillation_loss",
    "ensemble_log_probabilities",
    "hint_loss",
    "hint_projection",
    "soft_target_loss",
    "soft_targets",
    "train_hints",
    "train_student",
]
