"""Scalar quantizers and post-training quantization."""

from mlcomp.quant.grid import Grid, fit_grid
from mlcomp.quant.quantized import Quantized
from mlcomp.quant.rtn import rtn

__all__ = ["Grid", "Quantized", "fit_grid", "rtn"]
