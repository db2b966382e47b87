"""Scalar quantizers and post-training quantization."""

from mlcomp.quant.adaquant import adaquant
from mlcomp.quant.adaround import adaround
from mlcomp.quant.additive_student import AdditiveBlock, AdditiveWeight, squared_error
from mlcomp.quant.aqlm import aqlm, residual_kmeans
from mlcomp.quant.aqlm_beam_search import beam_search
from mlcomp.quant.aqlm_codebooks import tune_codebooks
from mlcomp.quant.batchnorm_folding import batchnorm_pairs, fold_batchnorm
from mlcomp.quant.bias_correction import analytic_correction, correct_biases, output_means, relu_mean
from mlcomp.quant.bitsplit import bitsplit
from mlcomp.quant.block_tuning import CapturedBlock, capture_block, tune_block
from mlcomp.quant.blockwise import Blockwise, blockwise, data_type_levels
from mlcomp.quant.brecq import QuantizedBlock, brecq
from mlcomp.quant.calibration import activation_grid, observer
from mlcomp.quant.codebook import Codebook
from mlcomp.quant.companding import ALaw, MuLaw, companded_codebook, optimal_companding
from mlcomp.quant.diffq import (
    DiffQLayer,
    SizeTarget,
    diffq_codes,
    diffq_size,
    meet_size,
    prepare_diffq,
    pseudo_noise,
)
from mlcomp.quant.e8 import e8_nearest, e8p_decode, e8p_encode
from mlcomp.quant.fake_quantized import FakeQuantized, integer_linear
from mlcomp.quant.grid import Grid, fit_grid, range_grid
from mlcomp.quant.hadamard import hadamard_matrix, hadamard_transform
from mlcomp.quant.integer_least_squares import BestCodes, best_quantized, integer_least_squares
from mlcomp.quant.kmeans import KMeans, kmeans, kmeans_assign
from mlcomp.quant.lloyd_max import lloyd_max
from mlcomp.quant.lsq import lsq_initial_step, lsq_quantize
from mlcomp.quant.mixed_bits import MixedBits, quantize_mixed
from mlcomp.quant.product_quantization import product_quantization
from mlcomp.quant.ptq import PTQResult, PTQRow, input_ranges, ptq
from mlcomp.quant.pv_tuning import pv_tuning
from mlcomp.quant.qat import QATLayer, StepQuantizer, finish_qat, prepare_qat
from mlcomp.quant.quantile import nf4_codebook, quantile_codebook
from mlcomp.quant.quantization_bound import QuantizationBound, certify, quantization_bound
from mlcomp.quant.quantization_snr import QuantizationSNR, quantization_snr
from mlcomp.quant.quantized import Quantized
from mlcomp.quant.residual_quantization import residual_quantization
from mlcomp.quant.rtn import rtn
from mlcomp.quant.ste import ste_round, straight_through
from mlcomp.quant.table_quantization import TableQuantized, table_quantize
from mlcomp.quant.tree_quantization import TreeCodebook, fit_tree, tree_quantization
from mlcomp.quant.vector_quantization import vector_quantization
from mlcomp.quant.vector_quantized import VectorQuantized
from mlcomp.quant.w4a16 import PackedW4, pack_w4, w4a16_matmul
from mlcomp.sources import Density

__all__ = [
    "ALaw",
    "AdditiveBlock",
    "AdditiveWeight",
    "BestCodes",
    "Blockwise",
    "CapturedBlock",
    "Codebook",
    "Density",
    "DiffQLayer",
    "FakeQuantized",
    "Grid",
    "KMeans",
    "MixedBits",
    "MuLaw",
    "PTQResult",
    "PTQRow",
    "PackedW4",
    "QATLayer",
    "QuantizationBound",
    "QuantizationSNR",
    "Quantized",
    "QuantizedBlock",
    "SizeTarget",
    "StepQuantizer",
    "TableQuantized",
    "TreeCodebook",
    "VectorQuantized",
    "activation_grid",
    "adaquant",
    "adaround",
    "analytic_correction",
    "aqlm",
    "batchnorm_pairs",
    "beam_search",
    "best_quantized",
    "bitsplit",
    "blockwise",
    "brecq",
    "capture_block",
    "certify",
    "companded_codebook",
    "correct_biases",
    "data_type_levels",
    "diffq_codes",
    "diffq_size",
    "e8_nearest",
    "e8p_decode",
    "e8p_encode",
    "finish_qat",
    "fit_grid",
    "fit_tree",
    "fold_batchnorm",
    "hadamard_matrix",
    "hadamard_transform",
    "input_ranges",
    "integer_least_squares",
    "integer_linear",
    "kmeans",
    "kmeans_assign",
    "lloyd_max",
    "lsq_initial_step",
    "lsq_quantize",
    "meet_size",
    "nf4_codebook",
    "observer",
    "optimal_companding",
    "output_means",
    "pack_w4",
    "prepare_diffq",
    "prepare_qat",
    "product_quantization",
    "pseudo_noise",
    "ptq",
    "pv_tuning",
    "quantile_codebook",
    "quantization_bound",
    "quantization_snr",
    "quantize_mixed",
    "range_grid",
    "relu_mean",
    "residual_kmeans",
    "residual_quantization",
    "rtn",
    "squared_error",
    "ste_round",
    "straight_through",
    "table_quantize",
    "tree_quantization",
    "tune_block",
    "tune_codebooks",
    "vector_quantization",
    "w4a16_matmul",
]
