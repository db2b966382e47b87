r"""AQLM: additive quantization, a weight as sums of entries of a few learned codebooks.

Notation: groups of d consecutive inputs; $\hat W_{n,\,jd:(j+1)d} = s_n \sum_{c=1}^{M} C_c[b_{njc}]$;
loss $\mathrm{tr}((W-\hat W)H(W-\hat W)^\top)$ with $H = 2XX^\top$.
Source: Egiazarian et al. 2024, arXiv:2401.06118, Algorithm 1, lines 8–12.   Syllabus: 1.13
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import (
    check_divides,
    check_dtype,
    check_hessian,
    check_interval,
    check_size,
    check_weight,
    check_whole,
    narrowed,
)
from mlcomp.context import isolated
from mlcomp.formats.additive_codebook import AdditiveCodes
from mlcomp.layerwise.hessian import damped_hessian
from mlcomp.quant.additive.aqlm_beam_search import beam_search, check_start, row_loss
from mlcomp.quant.additive.aqlm_codebooks import check_update, tune_codebooks
from mlcomp.quant.vector.kmeans import kmeans

# What codebooks and scales may be stored in.
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@isolated
def aqlm(
    weight: Float[Tensor, "out inp"],
    hessian: Float[Tensor, "inp inp"],
    *,
    dim: int = 8,
    books: int = 2,
    code_bits: int = 8,
    beam: int = 4,
    update: str = "least_squares",
    steps: int = 40,
    learning_rate: float = 1e-2,
    tau: float = 0.01,
    max_rounds: int = 20,
    damp: float = 0.01,
    dtype: torch.dtype = torch.float16,
    generator: torch.Generator | None = None,
    start: AdditiveCodes | None = None,
) -> AdditiveCodes:
    """Fit codebooks, scales and codes to the layer's outputs, by turns.

    Args:
        weight: (out, inp), any float dtype; not modified.
        hessian: (inp, inp), $2XX^\\top$, float32 or float64; not modified.
        dim: inputs of a group; must divide ``inp``.
        books: codebooks M, the codes of a group.
        code_bits: bits of a code, 1 to 8; a codebook has 2^code_bits entries.
        beam: see :func:`beam_search`.
        update, steps, learning_rate: see :func:`tune_codebooks`.
        tau: stop when a round lowers the loss by less than this share.
        max_rounds: rounds at the most; 0 returns the initialization.
        damp: share of the mean live diagonal of H that is added to its live diagonal.
        dtype: of the stored codebooks and scales; the search itself works with the stored values.
        generator: of the k-means seeding, on the weight's device; None: seed 0.
        start: codes to go on from; ``dim``, ``books`` and ``code_bits`` are then its own. None: residual k-means.
    Returns:
        Codes, codebooks and scales: code_bits·books/dim bits a weight, and the codebooks, much of a small layer.
    Raises:
        ValueError: malformed weight, H or option; more entries than groups in the weight; values outside the normal
            range of ``dtype``.
    Guarantee: the (damped) loss is never above that of the initialization, and falls in each round. The same seed
        gives the same codes. Inputs that are always zero do not affect the fit; their weights come out arbitrary.
    Cost: a round: beam search plus ``steps`` products with H; about ten rounds at tau = 0.01.
    Deviations: codebooks by conjugate gradients unless ``update="adam"``; a damped H.
    """
    weight = check_weight(weight)
    hessian = check_hessian(hessian, weight.shape[1])
    check_size("weight", weight)
    _check_sizes(weight, dim, books, code_bits)
    check_whole("max_rounds", max_rounds, 0)
    check_interval("tau", tau, "[0, 1)")
    check_whole("beam", beam, 1)
    check_update(update, steps, learning_rate)
    check_dtype("dtype", dtype, DTYPES)
    damped = damped_hessian(hessian, damp=damp)
    if start is None:
        live = weight.to(torch.promote_types(weight.dtype, torch.float32)).masked_fill(damped.dead, 0)
        start = residual_kmeans(live, dim=dim, books=books, code_bits=code_bits, generator=generator)
    check_start(weight, start)
    h = damped.matrix.masked_fill(torch.diag(damped.dead), 0).to(hessian.dtype)  # what is always zero costs nothing
    exact = h.double()
    best = stored(start, dtype)
    loss = float(row_loss(weight, best, exact).sum())
    for _ in range(max_rounds):
        tuned = tune_codebooks(weight, h, best, update=update, steps=steps, learning_rate=learning_rate)
        tuned = stored(tuned, dtype)
        # Rounding to the stored dtype can undo a gain that was small.
        base = tuned if float(row_loss(weight, tuned, exact).sum()) < loss else best
        found = AdditiveCodes(beam_search(weight, h, base, beam=beam), base.codebooks, base.scale)
        after = float(row_loss(weight, found, exact).sum())
        if not after < loss:
            break
        done = after > (1 - tau) * loss
        best, loss = found, after
        if done:
            break
    return best


@isolated
def residual_kmeans(
    weight: Float[Tensor, "out inp"],
    *,
    dim: int,
    books: int,
    code_bits: int,
    generator: torch.Generator | None = None,
) -> AdditiveCodes:
    """Return the initialization: scales are root mean squares of rows, each codebook fits what those before it left.

    Args:
        weight: (out, inp), any float dtype, computed in float32 (float64 stays); not modified.
        dim, books, code_bits, generator: see :func:`aqlm`.
    Raises:
        ValueError: malformed weight or option; more entries than groups in the weight.
    """
    weight = check_weight(weight)
    _check_sizes(weight, dim, books, code_bits)
    check_size("weight", weight)
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    entries, points = 2**code_bits, weight.numel() // dim
    if entries > points:
        raise ValueError(f"code_bits={code_bits} makes {entries} entries for the {points} groups of the weight")
    generator = generator or torch.Generator(weight.device).manual_seed(0)
    scale = weight.square().mean(1).sqrt()
    rest = (weight / torch.where(scale == 0, 1, scale)[:, None]).reshape(-1, dim)
    found = []
    for _ in range(books):
        found.append(kmeans(rest, entries, generator=generator, max_steps=30))
        rest = rest - found[-1].decode()
    codes = torch.stack([fit.index.to(torch.uint8).reshape(len(weight), -1) for fit in found], dim=2)
    return AdditiveCodes(codes, torch.stack([fit.codebook for fit in found]), scale)


def stored(quantized: AdditiveCodes, dtype: torch.dtype) -> AdditiveCodes:
    """Return the same with codebooks and scales rounded to ``dtype``.

    The codebooks are divided by their root mean square, so that the scales alone carry the unit of the weight.

    Raises:
        ValueError: scales outside the normal range of ``dtype``, overflow or loss of digits; weights beyond it.
    """
    unit = quantized.codebooks.square().mean().sqrt()
    unit = torch.where(unit == 0, 1, unit)
    scale = quantized.scale * unit
    largest, limits = float(scale.abs().max()), torch.finfo(dtype)
    if not (largest == 0 or limits.tiny <= largest <= limits.max):
        raise ValueError(f"scales up to {largest:.3g} do not fit into {dtype}: pass dtype=torch.float32")
    narrow = AdditiveCodes(quantized.codes, narrowed(quantized.codebooks / unit, dtype), narrowed(scale, dtype))
    narrow.dequantize()  # raises where a weight is beyond the dtype of the codebooks, in which it is decoded
    return narrow


def _check_sizes(weight: Tensor, dim: int, books: int, code_bits: int) -> None:
    check_divides("dim", dim, weight.shape[1])
    check_whole("books", books, 1)
    check_whole("code_bits", code_bits, 1, 8)
