"""How far a compressed layer or model is from the original."""

from mlcomp.metrics.model import (
    accuracy,
    embedding_similarity,
    hessian_error,
    kl_divergence,
    perplexity,
    relative_error,
    snr_db,
)

__all__ = [
    "accuracy",
    "embedding_similarity",
    "hessian_error",
    "kl_divergence",
    "perplexity",
    "relative_error",
    "snr_db",
]
