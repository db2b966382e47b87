"""Loaders of real data, and synthetic layers."""

from mlcomp.data.synthetic import make_layer

__all__ = ["make_layer"]
