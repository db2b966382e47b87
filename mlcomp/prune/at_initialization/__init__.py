"""Pruning before the first step of training."""

from mlcomp.prune.at_initialization.snip import connection_sensitivity, snip

__all__ = [
    "connection_sensitivity",
    "snip",
]
