"""Teacher and student: a network learns from the outputs and layers of another."""

from mlcomp.distill.born_again import born_again, ensemble_log_probabilities
from mlcomp.distill.cofi import CoFi, CoFiSteps, cofi
from mlcomp.distill.compressed_student import compressed_student
from mlcomp.distill.distilbert import distilbert, distilbert_loss, keep_layers, spread_layers
from mlcomp.distill.hint_projection import hint_projection
from mlcomp.distill.hints import Hinted, hint_loss, train_hints
from mlcomp.distill.in_context import in_context_student
from mlcomp.distill.instructions import (
    InstructionRows,
    SiftedPairs,
    instruction_rows,
    response_loss,
    sift_pairs,
)
from mlcomp.distill.kl_directions import GaussianFit, fit_gaussian, gaussian_divergence
from mlcomp.distill.layer_by_layer import LayerByLayer, layer_by_layer
from mlcomp.distill.minillm import TeacherMixed, minillm, minillm_loss
from mlcomp.distill.onebit_student import onebit_loss, onebit_student
from mlcomp.distill.sequence_level import sequence_student, teacher_outputs
from mlcomp.distill.soft_targets import distillation_loss, soft_target_loss, soft_targets
from mlcomp.distill.train_student import Taught, train_student

__all__ = [
    "CoFi",
    "CoFiSteps",
    "GaussianFit",
    "Hinted",
    "InstructionRows",
    "LayerByLayer",
    "SiftedPairs",
    "Taught",
    "TeacherMixed",
    "born_again",
    "cofi",
    "compressed_student",
    "distilbert",
    "distilbert_loss",
    "distillation_loss",
    "ensemble_log_probabilities",
    "fit_gaussian",
    "gaussian_divergence",
    "hint_loss",
    "hint_projection",
    "in_context_student",
    "instruction_rows",
    "keep_layers",
    "layer_by_layer",
    "minillm",
    "minillm_loss",
    "onebit_loss",
    "onebit_student",
    "response_loss",
    "sequence_student",
    "sift_pairs",
    "soft_target_loss",
    "soft_targets",
    "spread_layers",
    "teacher_outputs",
    "train_hints",
    "train_student",
]
