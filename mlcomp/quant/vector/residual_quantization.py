r"""Residual (multi-stage, additive) quantization: each book quantizes what the books before it left.

Notation: d inputs to a vector, B stages of K entries: $x \approx C_1[b_1] + \dots + C_B[b_B]$.
Source: Juang and Gray 1982 (stages); the sweeps are coordinate descent on the sum, as in Babenko and Lempitsky 2014
(additive quantization), with their joint updates done one book at a time.   Syllabus: 1.07
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import check_whole
from mlcomp.context import isolated
from mlcomp.quant.vector.kmeans import kmeans
from mlcomp.quant.vector.vector_quantized import VectorQuantized, to_vectors


@isolated
def residual_quantization(
    weight: Float[Tensor, "out inp"],
    *,
    dim: int,
    entries: int,
    stages: int,
    generator: torch.Generator,
    sweeps: int = 0,
    max_steps: int = 100,
) -> VectorQuantized:
    r"""Quantize each vector as a sum of one entry from each book: $B \log_2 K / d$ bits a weight, and the books.

    Args:
        weight: (out, inp), any float dtype, computed in float32 (float64 stays); not modified.
        dim: d, must divide ``inp``.
        entries: K of each book, at most the number of vectors, out·inp/d.
        stages: B. One stage is :func:`mlcomp.quant.vector_quantization`, to the last bit.
        generator: of the k-means++ seedings, on the weight's device.
        sweeps: rounds over the books after the stages, in which each book in turn takes one k-means iteration on what
            all the others leave.
        max_steps: k-means iterations of a stage at the most.
    Raises:
        ValueError: malformed weight, dim that does not divide, entries out of range, stages < 1, sweeps < 0.
    Guarantee: no stage and no sweep raises the squared error (up to rounding). The codes are found one book after the
        other, so they need not be the nearest sum.
    Cost: 2·out·inp·K FLOPs an iteration.
    """
    x = to_vectors(weight, dim)
    check_whole("stages", stages, 1)
    check_whole("sweeps", sweeps, 0)
    fits, rest = [], x
    for _ in range(stages):
        fits.append(kmeans(rest, entries, generator=generator, max_steps=max_steps))
        rest = rest - fits[-1].decode()
    for _ in range(sweeps):
        for b in range(stages):
            alone = rest + fits[b].decode()
            fits[b] = kmeans(alone, entries, start=fits[b].codebook, max_steps=1)
            rest = alone - fits[b].decode()
    codes = torch.stack([fit.index for fit in fits], dim=1)
    return VectorQuantized(codes, torch.stack([fit.codebook for fit in fits]), (len(weight), weight.shape[1]), "sum")
