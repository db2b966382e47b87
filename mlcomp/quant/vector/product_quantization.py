r"""Product quantization: a vector is cut into parts, each with a codebook of its own.

Notation: d inputs to a vector, B parts of d/B, K entries to a book: $K^B$ different vectors, for K·d stored numbers
and as many multiplications in the search.
Source: Jégou, Douze and Schmid 2011, section II.B.   Syllabus: 1.07
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import check_whole
from mlcomp.context import isolated
from mlcomp.quant.vector.kmeans import kmeans
from mlcomp.quant.vector.vector_quantized import VectorQuantized, to_vectors


@isolated
def product_quantization(
    weight: Float[Tensor, "out inp"],
    *,
    dim: int,
    entries: int,
    parts: int,
    generator: torch.Generator,
    max_steps: int = 100,
) -> VectorQuantized:
    r"""Quantize the parts of each vector independently: $B \log_2 K / d$ bits a weight, and the books.

    Args:
        weight: (out, inp), any float dtype, computed in float32 (float64 stays); not modified.
        dim: d, must divide ``inp``.
        entries: K of each book, at most the number of vectors, out·inp/d.
        parts: B, must divide d. One part is :func:`mlcomp.quant.vector_quantization`, to the last bit.
        generator: of the k-means++ seedings, on the weight's device.
        max_steps: k-means iterations at the most.
    Raises:
        ValueError: malformed weight, dim or parts that do not divide, entries out of range.
    Guarantee: of all $K^B$ vectors that the books make, each vector has the nearest.
    Cost: 2·out·inp·K FLOPs an iteration.
    """
    x = to_vectors(weight, dim)
    check_whole("parts", parts, 1)
    if dim % parts:
        raise ValueError(f"parts must divide dim={dim}, got {parts}")
    fits = [
        kmeans(part.contiguous(), entries, generator=generator, max_steps=max_steps)
        for part in x.split(dim // parts, dim=1)
    ]
    codes = torch.stack([fit.index for fit in fits], dim=1)
    return VectorQuantized(
        codes, torch.stack([fit.codebook for fit in fits]), (len(weight), weight.shape[1]), "concatenate"
    )
