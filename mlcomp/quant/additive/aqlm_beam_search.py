r"""The discrete half of AQLM: a beam search over the codes of all rows at once, with the full Hessian.

Notation: r = w/s − ŵ/s the residual of a row in units of its scale, $g = rH$, c an entry of a codebook. Exchanging
the entry o for c in group j changes the row's loss $rHr^\top$ by
$2\,(o-c) \cdot g_j + (o-c) H_{jj} (o-c)^\top$, and g by $(o-c) H_{j,:}$.
Source: Egiazarian et al. 2024, arXiv:2401.06118, section 3.2 (phase 1) and Algorithm 1, line 11.   Syllabus: 1.13
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mlcomp.checks import check_hessian, check_size, check_weight, check_whole
from mlcomp.context import isolated
from mlcomp.formats.additive_codebook import AdditiveCodes
from mlcomp.layerwise.hessian import output_loss

FLOATS = 2**24  # hypotheses' products with H, held at a time


@isolated
def beam_search(
    weight: Float[Tensor, "out inp"],
    hessian: Float[Tensor, "inp inp"],
    start: AdditiveCodes,
    *,
    beam: int = 4,
) -> UInt8[Tensor, "out groups books"]:
    """Return better codes for fixed codebooks and scales: one sweep over all groups and codebooks.

    Each row keeps its ``beam`` best complete sets of codes. For one group and codebook after the other, every kept
    set is tried with every entry of that codebook, and the best ``beam`` of all these stay.

    Args:
        weight: (out, inp), any float dtype; not modified.
        hessian: (inp, inp), $2XX^\\top$, float32 or float64; not modified.
        start: the codes to begin from, and the codebooks and scales; inp must be its own.
        beam: sets of codes kept for each row, at least 1.
    Raises:
        ValueError: malformed weight or H, a start of another shape, beam below 1.
    Guarantee: no row's loss rises (a row that did not gain keeps its codes). With
        beam ≥ entries^(groups·books) the result is the best of all codes.
    Cost: about out·inp·books·beam·(2·entries + inp) FLOPs.
    """
    weight = check_weight(weight)
    hessian = check_hessian(hessian, weight.shape[1])
    check_size("weight", weight)
    check_start(weight, start)
    check_whole("beam", beam, 1)
    dtype = torch.float64 if torch.float64 in (weight.dtype, hessian.dtype) else torch.float32
    # Only the ratios of H matter here; its mean diagonal as the unit keeps float32 away from overflow.
    h = hessian.to(dtype) / hessian.diagonal().mean().clamp(min=torch.finfo(dtype).tiny).to(dtype)
    books, scale = start.codebooks.to(dtype), start.scale.to(dtype)
    target = weight.to(dtype) / torch.where(scale == 0, 1, scale)[:, None]
    rows = max(1, FLOATS // (beam * weight.shape[1]))
    parts = zip(target.split(rows), start.codes.split(rows), strict=True)
    found = torch.cat([_search(w, h, codes, books, beam) for w, codes in parts])
    exact = hessian.double()
    before, after = (
        row_loss(weight, AdditiveCodes(codes, start.codebooks, start.scale), exact) for codes in (start.codes, found)
    )
    return torch.where((after < before)[:, None, None], found, start.codes)


def row_loss(weight: Tensor, quantized: AdditiveCodes, hessian: Tensor) -> Float[Tensor, " out"]:
    """Return each row's loss $(w - ŵ) H (w - ŵ)^T$ in the dtype of H; Ŵ as it is decoded."""
    return output_loss(weight.to(hessian.dtype) - quantized.dequantize().to(hessian.dtype), hessian)


def check_start(weight: Tensor, start: AdditiveCodes) -> None:
    """Raise unless ``start`` stands for a weight of this shape."""
    if not isinstance(start, AdditiveCodes):
        raise TypeError(f"start must be AdditiveCodes, got {type(start).__name__}")
    shape = (len(start.codes), start.inp)
    if shape != tuple(weight.shape):
        raise ValueError(f"start stands for a weight {shape}, got one of {tuple(weight.shape)}")


def _search(target: Tensor, h: Tensor, codes: Tensor, books: Tensor, beam: int) -> Tensor:
    """One sweep over some rows, in units of their scales; ``g`` holds only the columns still to come."""
    out, groups, count = codes.shape
    entries, dim = books.shape[1:]
    row = torch.arange(out, device=codes.device)[:, None]
    kept = codes[:, None].clone()  # (out, kept, groups, books)
    now = sum((books[c][codes[:, :, c].long()] for c in range(count)), start=books.new_zeros(())).flatten(1)
    g = ((target - now) @ h)[:, None]  # (out, kept, inp still to come)
    loss = torch.zeros(out, 1, dtype=h.dtype, device=h.device)  # less that of the start
    for j in range(groups):
        strip = h[j * dim : (j + 1) * dim, j * dim :]
        square = strip[:, :dim]
        for c in range(count):
            entry = books[c]
            old = entry[kept[:, :, j, c].long()]
            without = g[:, :, :dim] + old @ square
            base = loss + (old * (g[:, :, :dim] + without)).sum(2)
            change = ((entry @ square) * entry).sum(1) - 2 * without @ entry.T
            score = (base[:, :, None] + change).flatten(1)
            loss, index = score.topk(min(beam, score.shape[1]), dim=1, largest=False)
            parent, choice = index // entries, index % entries
            g = g[row, parent] + (old[row, parent] - entry[choice]) @ strip
            kept = kept[row, parent]
            kept[:, :, j, c] = choice.to(torch.uint8)
        g = g[:, :, dim:]
    return kept[:, 0]
