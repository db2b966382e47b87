"""Additive codebooks: AQLM, and tuning towards the outputs of a block or a network."""

from mlcomp.quant.additive.additive_student import AdditiveBlock, AdditiveWeight, squared_error
from mlcomp.quant.additive.aqlm import aqlm, residual_kmeans
from mlcomp.quant.additive.aqlm_beam_search import beam_search
from mlcomp.quant.additive.aqlm_codebooks import tune_codebooks
from mlcomp.quant.additive.block_tuning import CapturedBlock, capture_block, tune_block
from mlcomp.quant.additive.pv_tuning import pv_tuning

__all__ = [
    "AdditiveBlock",
    "AdditiveWeight",
    "CapturedBlock",
    "aqlm",
    "beam_search",
    "capture_block",
    "pv_tuning",
    "residual_kmeans",
    "squared_error",
    "tune_block",
    "tune_codebooks",
]
