"""Quantization of a trained network from a few calibration inputs."""

from mlcomp.quant.post_training.adaquant import adaquant
from mlcomp.quant.post_training.adaround import adaround
from mlcomp.quant.post_training.batchnorm_folding import batchnorm_pairs, fold_batchnorm
from mlcomp.quant.post_training.bitsplit import bitsplit
from mlcomp.quant.post_training.brecq import QuantizedBlock, brecq
from mlcomp.quant.post_training.calibration import activation_grid, observer
from mlcomp.quant.post_training.fake_quantized import FakeQuantized, integer_linear
from mlcomp.quant.post_training.gptq import gptq
from mlcomp.quant.post_training.hadamard import hadamard_matrix, hadamard_transform
from mlcomp.quant.post_training.incoherence import hessian_incoherence, weight_incoherence
from mlcomp.quant.post_training.ldlq import ldl, ldlq, ldlq_round
from mlcomp.quant.post_training.llm_int8 import LLMInt8Linear, llm_int8, outlier_columns, outlier_features
from mlcomp.quant.post_training.ptq import PTQResult, PTQRow, input_ranges, ptq
from mlcomp.quant.post_training.quip import QuIP, quip
from mlcomp.quant.post_training.quip_sharp import QuIPSharp, quip_sharp
from mlcomp.quant.post_training.spqr import spqr
from mlcomp.quant.post_training.spqr_format import SpQR

__all__ = [
    "FakeQuantized",
    "LLMInt8Linear",
    "PTQResult",
    "PTQRow",
    "QuIP",
    "QuIPSharp",
    "QuantizedBlock",
    "SpQR",
    "activation_grid",
    "adaquant",
    "adaround",
    "batchnorm_pairs",
    "bitsplit",
    "brecq",
    "fold_batchnorm",
    "gptq",
    "hadamard_matrix",
    "hadamard_transform",
    "hessian_incoherence",
    "input_ranges",
    "integer_linear",
    "ldl",
    "ldlq",
    "ldlq_round",
    "llm_int8",
    "observer",
    "outlier_columns",
    "outlier_features",
    "ptq",
    "quip",
    "quip_sharp",
    "spqr",
    "weight_incoherence",
]
