"""One layer's problem ‖WX − ŴX‖², and a model's layers: the Hessian, the column sweep, running, compressing."""

from mlcomp.layerwise.batchnorm import reestimate_batchnorm
from mlcomp.layerwise.bias_correction import (
    analytic_correction,
    bias_correction,
    correct_biases,
    output_means,
    relu_mean,
)
from mlcomp.layerwise.column_sweep import ColumnSweep, column_order, inverse_factor
from mlcomp.layerwise.compress import compress
from mlcomp.layerwise.hessian import (
    DampedHessian,
    InverseHessian,
    damped_hessian,
    inverse_hessian,
    layer_hessian,
    output_loss,
)
from mlcomp.layerwise.inputs import LayerTrace, collect_hessians, trace_layers
from mlcomp.layerwise.load import load, load_results
from mlcomp.layerwise.matrix import input_matrices, is_layer, set_weight_matrix, weight_matrix
from mlcomp.layerwise.packed_linear import PackedConv, PackedEmbedding, PackedLinear
from mlcomp.layerwise.report import CompressionReport, LayerRow, LeftOut, output_error
from mlcomp.layerwise.running import StopForward, call_model, hooked
from mlcomp.layerwise.save import save
from mlcomp.layerwise.weights import keep_zeros, layer_weights, network_sparsity, replace_module, with_weights

__all__ = [
    "ColumnSweep",
    "CompressionReport",
    "DampedHessian",
    "InverseHessian",
    "LayerRow",
    "LayerTrace",
    "LeftOut",
    "PackedConv",
    "PackedEmbedding",
    "PackedLinear",
    "StopForward",
    "analytic_correction",
    "bias_correction",
    "call_model",
    "collect_hessians",
    "column_order",
    "compress",
    "correct_biases",
    "damped_hessian",
    "hooked",
    "input_matrices",
    "inverse_factor",
    "inverse_hessian",
    "is_layer",
    "keep_zeros",
    "layer_hessian",
    "layer_weights",
    "load",
    "load_results",
    "network_sparsity",
    "output_error",
    "output_loss",
    "output_means",
    "reestimate_batchnorm",
    "relu_mean",
    "replace_module",
    "save",
    "set_weight_matrix",
    "trace_layers",
    "weight_matrix",
    "with_weights",
]
