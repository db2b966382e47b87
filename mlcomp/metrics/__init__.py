"""How far a compressed layer or model is from the original, and how far it can be trusted."""

from mlcomp.metrics.calibration import Reliability, expected_calibration_error, fit_temperature, reliability
from mlcomp.metrics.model import (
    accuracy,
    embedding_similarity,
    hessian_error,
    kl_divergence,
    perplexity,
    relative_error,
    snr_db,
)
from mlcomp.metrics.robustness import add_noise, fgsm, hotflip, random_tokens
from mlcomp.metrics.subgroups import (
    Changes,
    SubgroupAccuracy,
    changed_predictions,
    ink,
    ranked_groups,
    slant,
    subgroup_accuracy,
    worst_by_chance,
)

__all__ = [
    "Changes",
    "Reliability",
    "SubgroupAccuracy",
    "accuracy",
    "add_noise",
    "changed_predictions",
    "embedding_similarity",
    "expected_calibration_error",
    "fgsm",
    "fit_temperature",
    "hessian_error",
    "hotflip",
    "ink",
    "kl_divergence",
    "perplexity",
    "random_tokens",
    "ranked_groups",
    "relative_error",
    "reliability",
    "slant",
    "snr_db",
    "subgroup_accuracy",
    "worst_by_chance",
]
