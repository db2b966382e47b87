"""What a model costs: bytes, FLOPs, time and energy on hardware, and what training emits."""

from mlcomp.cost.emissions import LLAMA_2, TrainingRun, emissions_kg, energy_kwh
from mlcomp.cost.hardware import A100, DRAM_PJ_PER_BYTE, ENERGY, H100, T4, TURING_RATIOS, Chip, OperationEnergy, Ratio
from mlcomp.cost.memory import (
    TrainingMemory,
    kv_cache_nbytes,
    overparameterized_width,
    training_memory,
    weights_nbytes,
)
from mlcomp.cost.model import LayerCost, ModelCost, model_cost
from mlcomp.cost.roofline import (
    LayerBytes,
    LayerEnergy,
    LayerTime,
    balance_tokens,
    layer_energy,
    layer_nbytes,
    layer_time,
    peak_rate,
)
from mlcomp.formats.storage import stored_nbytes

__all__ = [
    "A100",
    "DRAM_PJ_PER_BYTE",
    "ENERGY",
    "H100",
    "LLAMA_2",
    "T4",
    "TURING_RATIOS",
    "Chip",
    "LayerBytes",
    "LayerCost",
    "LayerEnergy",
    "LayerTime",
    "ModelCost",
    "OperationEnergy",
    "Ratio",
    "TrainingMemory",
    "TrainingRun",
    "balance_tokens",
    "emissions_kg",
    "energy_kwh",
    "kv_cache_nbytes",
    "layer_energy",
    "layer_nbytes",
    "layer_time",
    "model_cost",
    "overparameterized_width",
    "peak_rate",
    "stored_nbytes",
    "training_memory",
    "weights_nbytes",
]
