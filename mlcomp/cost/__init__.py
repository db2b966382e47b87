"""What a model costs: bytes, FLOPs, and time and energy on hardware."""

from mlcomp.cost.hardware import A100, DRAM_PJ_PER_BYTE, ENERGY, H100, T4, TURING_RATIOS, Chip, OperationEnergy, Ratio
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
    "balance_tokens",
    "layer_energy",
    "layer_nbytes",
    "layer_time",
    "model_cost",
    "peak_rate",
    "stored_nbytes",
]
