r"""Vector quantization of a weight with one k-means codebook.

Notation: d inputs to a vector, codebook of K entries: $\log_2 K / d$ bits a weight, and the codebook.
Source: Linde, Buzo and Gray 1980; Gersho and Gray 1992, chapter 10.   Syllabus: 1.07
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.context import isolated
from mlcomp.quant.vector.kmeans import kmeans
from mlcomp.quant.vector.vector_quantized import VectorQuantized, to_vectors


@isolated
def vector_quantization(
    weight: Float[Tensor, "out inp"], *, dim: int, entries: int, generator: torch.Generator, max_steps: int = 100
) -> VectorQuantized:
    """Replace each run of ``dim`` inputs by the nearest entry of a codebook fitted to all of them.

    Args:
        weight: (out, inp), any float dtype, computed in float32 (float64 stays); not modified.
        dim: d, must divide ``inp``.
        entries: K, at most the number of vectors, out·inp/d.
        generator: of the k-means++ seeding, on the weight's device.
        max_steps: k-means iterations at the most.
    Raises:
        ValueError: malformed weight, dim that does not divide, entries out of range.
    Guarantee: every vector has its nearest entry.
    Cost: 2·out·inp·K FLOPs an iteration; the search and the codebook are exponential in the bits of a vector.
    """
    x = to_vectors(weight, dim)
    fit = kmeans(x, entries, generator=generator, max_steps=max_steps)
    return VectorQuantized(fit.index[:, None], fit.codebook[None], (len(weight), weight.shape[1]), "sum")
