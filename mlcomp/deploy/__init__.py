"""From a compressed model to what an engineer takes along: folders that other tools load."""

from mlcomp.deploy.compressed_tensors import Exported, export_compressed_tensors

__all__ = [
    "Exported",
    "export_compressed_tensors",
]
