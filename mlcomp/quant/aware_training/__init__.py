"""Quantization while the network trains."""

from mlcomp.quant.aware_training.binarized import (
    BinaryLinear,
    BinarySign,
    binarize,
    binarized_mlp,
    clip_weights,
    scaled_rates,
    squared_hinge,
)
from mlcomp.quant.aware_training.diffq import (
    DiffQLayer,
    SizeTarget,
    diffq_codes,
    diffq_size,
    meet_size,
    prepare_diffq,
    pseudo_noise,
)
from mlcomp.quant.aware_training.group_wise import (
    GroupWise,
    GroupWiseLayer,
    TokenWiseLayer,
    finish_group_wise,
    prepare_group_wise,
)
from mlcomp.quant.aware_training.lsq import lsq_initial_step, lsq_quantize
from mlcomp.quant.aware_training.onebit import OneBit, onebit_decompose
from mlcomp.quant.aware_training.onebit_layer import OneBitLinear, prepare_onebit
from mlcomp.quant.aware_training.packed_binarized import PackedBinarized, Thresholds, fold_thresholds, pack_binarized
from mlcomp.quant.aware_training.packed_onebit import OneBitModel, PackedOneBit, finish_onebit
from mlcomp.quant.aware_training.qat import QATLayer, StepQuantizer, finish_qat, prepare_qat
from mlcomp.quant.aware_training.qlora import qlora
from mlcomp.quant.aware_training.shift_based import ShiftAdaMax, ShiftBatchNorm, nearest_power
from mlcomp.quant.aware_training.ste import ste_round, straight_through

__all__ = [
    "BinaryLinear",
    "BinarySign",
    "DiffQLayer",
    "GroupWise",
    "GroupWiseLayer",
    "OneBit",
    "OneBitLinear",
    "OneBitModel",
    "PackedBinarized",
    "PackedOneBit",
    "QATLayer",
    "ShiftAdaMax",
    "ShiftBatchNorm",
    "SizeTarget",
    "StepQuantizer",
    "Thresholds",
    "TokenWiseLayer",
    "binarize",
    "binarized_mlp",
    "clip_weights",
    "diffq_codes",
    "diffq_size",
    "finish_group_wise",
    "finish_onebit",
    "finish_qat",
    "fold_thresholds",
    "lsq_initial_step",
    "lsq_quantize",
    "meet_size",
    "nearest_power",
    "onebit_decompose",
    "pack_binarized",
    "prepare_diffq",
    "prepare_group_wise",
    "prepare_onebit",
    "prepare_qat",
    "pseudo_noise",
    "qlora",
    "scaled_rates",
    "squared_hinge",
    "ste_round",
    "straight_through",
]
