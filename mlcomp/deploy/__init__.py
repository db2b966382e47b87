"""From a model to what an engineer takes along: compressed with one call, in folders that other tools load."""

from mlcomp.deploy.compare_models import ComparedModel, compare_models
from mlcomp.deploy.compress_model import CompressedModel, compress_model
from mlcomp.deploy.compressed_tensors import Exported, export_compressed_tensors
from mlcomp.deploy.lora_adapter import load_lora_adapter, save_lora_adapter
from mlcomp.deploy.measure import Agreement
from mlcomp.deploy.open_model import open_model
from mlcomp.deploy.opened_model import ImageInput, OpenedModel

__all__ = [
    "Agreement",
    "ComparedModel",
    "CompressedModel",
    "Exported",
    "ImageInput",
    "OpenedModel",
    "compare_models",
    "compress_model",
    "export_compressed_tensors",
    "load_lora_adapter",
    "open_model",
    "save_lora_adapter",
]
