"""Scalar quantizers and post-training quantization."""

from mlcomp.quant.adaquant import adaquant
from mlcomp.quant.adaround import adaround
from mlcomp.quant.batchnorm_folding import batchnorm_pairs, fold_batchnorm
from mlcomp.quant.bitsplit import bitsplit
from mlcomp.quant.brecq import QuantizedBlock, brecq
from mlcomp.quant.grid import Grid, fit_grid
from mlcomp.quant.hadamard import hadamard_matrix, hadamard_transform
from mlcomp.quant.kmeans import KMeans, kmeans, kmeans_assign
from mlcomp.quant.quantized import Quantized
from mlcomp.quant.rtn import rtn
from mlcomp.quant.w4a16 import PackedW4, pack_w4, w4a16_matmul

__all__ = [
    "Grid",
    "KMeans",
    "PackedW4",
    "Quantized",
    "QuantizedBlock",
    "adaquant",
    "adaround",
    "batchnorm_pairs",
    "bitsplit",
    "brecq",
    "fit_grid",
    "fold_batchnorm",
    "hadamard_matrix",
    "hadamard_transform",
    "kmeans",
    "kmeans_assign",
    "pack_w4",
    "rtn",
    "w4a16_matmul",
]
