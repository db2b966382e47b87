"""Quantizers of several weights at once: k-means and what is built on it, and the E8 lattice."""

from mlcomp.quant.vector.e8 import e8_nearest, e8p_decode, e8p_encode
from mlcomp.quant.vector.kmeans import KMeans, kmeans, kmeans_assign
from mlcomp.quant.vector.product_quantization import product_quantization
from mlcomp.quant.vector.residual_quantization import residual_quantization
from mlcomp.quant.vector.tree_quantization import TreeCodebook, fit_tree, tree_quantization
from mlcomp.quant.vector.vector_quantization import vector_quantization
from mlcomp.quant.vector.vector_quantized import VectorQuantized

__all__ = [
    "KMeans",
    "TreeCodebook",
    "VectorQuantized",
    "e8_nearest",
    "e8p_decode",
    "e8p_encode",
    "fit_tree",
    "kmeans",
    "kmeans_assign",
    "product_quantization",
    "residual_quantization",
    "tree_quantization",
    "vector_quantization",
]
