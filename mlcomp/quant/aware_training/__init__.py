"""Quantization while the network trains."""

from mlcomp.quant.aware_training.diffq import (
    DiffQLayer,
    SizeTarget,
    diffq_codes,
    diffq_size,
    meet_size,
    prepare_diffq,
    pseudo_noise,
)
from mlcomp.quant.aware_training.lsq import lsq_initial_step, lsq_quantize
from mlcomp.quant.aware_training.onebit import OneBit, onebit_decompose
from mlcomp.quant.aware_training.qat import QATLayer, StepQuantizer, finish_qat, prepare_qat
from mlcomp.quant.aware_training.qlora import qlora
from mlcomp.quant.aware_training.ste import ste_round, straight_through

__all__ = [
    "DiffQLayer",
    "OneBit",
    "QATLayer",
    "SizeTarget",
    "StepQuantizer",
    "diffq_codes",
    "diffq_size",
    "finish_qat",
    "lsq_initial_step",
    "lsq_quantize",
    "meet_size",
    "onebit_decompose",
    "prepare_diffq",
    "prepare_qat",
    "pseudo_noise",
    "qlora",
    "ste_round",
    "straight_through",
]
