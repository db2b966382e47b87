"""Scalar quantizers and post-training quantization."""

from mlcomp.quant.adaquant import adaquant
from mlcomp.quant.adaround import adaround
from mlcomp.quant.bitsplit import bitsplit
from mlcomp.quant.brecq import QuantizedBlock, brecq
from mlcomp.quant.grid import Grid, fit_grid
from mlcomp.quant.quantized import Quantized
from mlcomp.quant.rtn import rtn

__all__ = ["Grid", "Quantized", "QuantizedBlock", "adaquant", "adaround", "bitsplit", "brecq", "fit_grid", "rtn"]
