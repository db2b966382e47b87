"""The one training loop of the course, and what is trained beside a frozen model."""

from mlcomp.train.loop import History, batch_starts, random_batches, train
from mlcomp.train.lora import LoRALinear, add_lora, lora_layers, lora_parameters, merge_lora

__all__ = [
    "History",
    "LoRALinear",
    "add_lora",
    "batch_starts",
    "lora_layers",
    "lora_parameters",
    "merge_lora",
    "random_batches",
    "train",
]
