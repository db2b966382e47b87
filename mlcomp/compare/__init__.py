"""Which method at the same size: fronts, bounds, and the true optimum of small problems."""

from mlcomp.compare.best_subset import BestSubset, best_pruned, best_subset
from mlcomp.compare.every_method import measure_method, picture_of_methods
from mlcomp.compare.integer_least_squares import BestCodes, best_quantized, integer_least_squares
from mlcomp.compare.pareto import pareto_front
from mlcomp.compare.pruning_snr import kept_share, pruning_snr
from mlcomp.compare.pruning_vs_quantization import Comparison, compare, crossover_kurtosis
from mlcomp.compare.quantization_bound import QuantizationBound, certify, quantization_bound
from mlcomp.compare.quantization_snr import QuantizationSNR, quantization_snr
from mlcomp.compare.scaling_law import (
    PowerLaw,
    QuantizedModel,
    best_precision,
    bits_per_byte,
    fit_power_law,
    quantize_matrices,
)
from mlcomp.compare.train_large import Contender, train_large

__all__ = [
    "BestCodes",
    "BestSubset",
    "Comparison",
    "Contender",
    "PowerLaw",
    "QuantizationBound",
    "QuantizationSNR",
    "QuantizedModel",
    "best_precision",
    "best_pruned",
    "best_quantized",
    "best_subset",
    "bits_per_byte",
    "certify",
    "compare",
    "crossover_kurtosis",
    "fit_power_law",
    "integer_least_squares",
    "kept_share",
    "measure_method",
    "pareto_front",
    "picture_of_methods",
    "pruning_snr",
    "quantization_bound",
    "quantization_snr",
    "quantize_matrices",
    "train_large",
]
