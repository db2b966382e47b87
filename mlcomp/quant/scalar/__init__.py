"""Quantizers of single weights: codebooks, quantiles, companding, tables, mixed bits."""

from mlcomp.quant.scalar.blockwise import Blockwise, blockwise, data_type_levels
from mlcomp.quant.scalar.codebook import Codebook
from mlcomp.quant.scalar.companding import ALaw, MuLaw, companded_codebook, optimal_companding
from mlcomp.quant.scalar.double_quantization import DoubleQuantized, double_quantize, scale_levels
from mlcomp.quant.scalar.gobo import Gobo, gobo, gobo_outliers
from mlcomp.quant.scalar.lloyd_max import lloyd_max
from mlcomp.quant.scalar.mixed_bits import MixedBits, quantize_mixed
from mlcomp.quant.scalar.nf4_matmul import PackedNF4, nf4_matmul, pack_nf4
from mlcomp.quant.scalar.quantile import nf4_codebook, quantile_codebook
from mlcomp.quant.scalar.table_quantization import TableQuantized, table_quantize

__all__ = [
    "ALaw",
    "Blockwise",
    "Codebook",
    "DoubleQuantized",
    "Gobo",
    "MixedBits",
    "MuLaw",
    "PackedNF4",
    "TableQuantized",
    "blockwise",
    "companded_codebook",
    "data_type_levels",
    "double_quantize",
    "gobo",
    "gobo_outliers",
    "lloyd_max",
    "nf4_codebook",
    "nf4_matmul",
    "optimal_companding",
    "pack_nf4",
    "quantile_codebook",
    "quantize_mixed",
    "scale_levels",
    "table_quantize",
]
