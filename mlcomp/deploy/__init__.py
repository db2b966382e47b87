"""From a compressed model to what an engineer takes along: folders that other tools load."""

from mlcomp.deploy.compressed_tensors import Exported, export_compressed_tensors
from mlcomp.deploy.lora_adapter import load_lora_adapter, save_lora_adapter

__all__ = [
    "Exported",
    "export_compressed_tensors",
    "load_lora_adapter",
    "save_lora_adapter",
]
