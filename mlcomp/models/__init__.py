"""The small networks of the course, and loaders of real models."""

from mlcomp.models.convnet import convnet
from mlcomp.models.mlp import mlp

__all__ = ["convnet", "mlp"]
