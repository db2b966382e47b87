r"""The continuous half of AQLM: better codebooks and scales for fixed codes.

Notation: $\hat W = s \cdot D(C)$, where D puts the entries of the codebooks C where the codes say: linear in C for
fixed s and in s for fixed C. Loss $\mathrm{tr}((W-\hat W)H(W-\hat W)^\top)$. So the best C solves a linear
least-squares problem with normal equations $D^\top(s^2 D(C)H) = D^\top(s\,WH)$, and the best s has a closed form.
Source: Egiazarian et al. 2024, arXiv:2401.06118, section 3.3 (phase 2) and Algorithm 1, line 10 (Adam); conjugate
gradients: Hestenes and Stiefel 1952.   Syllabus: 1.13
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import check_choice, check_hessian, check_positive, check_size, check_weight, check_whole
from mlcomp.context import isolated
from mlcomp.formats.additive_codebook import AdditiveCodes
from mlcomp.layerwise.hessian import output_loss
from mlcomp.quant.additive.aqlm_beam_search import check_start


@isolated
def tune_codebooks(
    weight: Float[Tensor, "out inp"],
    hessian: Float[Tensor, "inp inp"],
    start: AdditiveCodes,
    *,
    update: str = "least_squares",
    steps: int = 40,
    learning_rate: float = 1e-2,
) -> AdditiveCodes:
    """Return codebooks and scales that fit better; the codes stay.

    Args:
        weight: (out, inp), any float dtype; not modified.
        hessian: (inp, inp), $2XX^\\top$, float32 or float64; not modified.
        start: the codes, and the codebooks and scales to begin from; not modified.
        update: "least_squares": conjugate gradients on the codebooks, and the closed form of the scales, in turn.
            "adam": Adam on both together, as the paper does.
        steps: conjugate-gradient or Adam steps at the most (each needs one product with H).
        learning_rate: of Adam, for codebooks and scales divided by their root mean squares.
    Returns:
        float32 codebooks and scales (float64 if weight or H is).
    Raises:
        ValueError: malformed weight or H, a start of another shape, another update, steps below 1, a learning rate
            that is not positive.
    Guarantee: with "least_squares" the loss does not rise beyond rounding; an entry that no code names stays.
    Cost: 2·out·inp² FLOPs a step.
    """
    weight = check_weight(weight)
    hessian = check_hessian(hessian, weight.shape[1])
    check_size("weight", weight)
    check_start(weight, start)
    check_update(update, steps, learning_rate)
    dtype = torch.float64 if torch.float64 in (weight.dtype, hessian.dtype) else torch.float32
    w = weight.to(dtype)
    h = hessian.to(dtype) / hessian.diagonal().mean().clamp(min=torch.finfo(dtype).tiny).to(dtype)
    books, scale = start.codebooks.to(dtype), start.scale.to(dtype)
    if update == "adam":
        books, scale = _adam(w, h, start.codes, books, scale, steps, learning_rate)
    else:
        # Two rounds of the alternation share the steps: the scales start well and move little.
        for part in (steps - steps // 2, steps // 2):
            books = _conjugate_gradients(w, h, start.codes, books, scale, part)
            scale = _best_scales(w, h, decode_sum(start.codes, books), scale)
    return AdditiveCodes(start.codes, books, scale)


def check_update(update: str, steps: int, learning_rate: float) -> None:
    """Raise unless these options of :func:`tune_codebooks` make sense."""
    check_choice("update", update, ("least_squares", "adam"))
    check_whole("steps", steps, 1)
    check_positive("learning_rate", learning_rate)


def decode_sum(codes: Tensor, books: Tensor) -> Tensor:
    """Return the sums of the entries that the codes name, (out, inp), before the scales; differentiable in books."""
    entries = (books[c][codes[:, :, c].long()] for c in range(len(books)))
    return sum(entries, start=books.new_zeros(())).flatten(1)


def gather_sum(codes: Tensor, matrix: Tensor, books: Tensor) -> Tensor:
    """Return the adjoint of :func:`decode_sum`: for each entry the sum of ``matrix`` where a code names it."""
    pieces = matrix.reshape(-1, books.shape[2])
    parts = [
        torch.zeros_like(books[c]).index_add_(0, codes[:, :, c].reshape(-1).long(), pieces) for c in range(len(books))
    ]
    return torch.stack(parts)


def _best_scales(w: Tensor, h: Tensor, decoded: Tensor, scale: Tensor) -> Tensor:
    product = decoded @ h
    square = (product * decoded).sum(1)
    return torch.where(square > 0, (product * w).sum(1) / square.clamp(min=torch.finfo(h.dtype).tiny), scale)


def _conjugate_gradients(w: Tensor, h: Tensor, codes: Tensor, books: Tensor, scale: Tensor, steps: int) -> Tensor:
    """Solve the normal equations from ``books`` on, with the diagonal as preconditioner."""
    column = scale[:, None]
    diagonal = gather_sum(codes, column.square() * h.diagonal(), books)
    inverse = torch.where(diagonal > 0, 1 / diagonal.clamp(min=torch.finfo(h.dtype).tiny), 0)
    residual = gather_sum(codes, column * ((w - column * decode_sum(codes, books)) @ h), books)
    direction = inverse * residual
    descent = (residual * direction).sum()
    # A residual this small beside the right-hand side is rounding. Going on would blow it up in those directions that
    # change nothing: a shift between two codebooks, or an input whose H is zero.
    right = gather_sum(codes, column * (w @ h), books)
    enough = (10 * torch.finfo(h.dtype).eps) ** 2 * (right * inverse * right).sum()
    for _ in range(steps):
        if descent <= enough:
            break
        product = gather_sum(codes, column * ((column * decode_sum(codes, direction)) @ h), books)
        length = descent / (direction * product).sum()
        books = books + length * direction
        residual = residual - length * product
        before, descent = descent, (residual * inverse * residual).sum()
        direction = inverse * residual + descent / before * direction
    return books


def _adam(
    w: Tensor, h: Tensor, codes: Tensor, books: Tensor, scale: Tensor, steps: int, learning_rate: float
) -> tuple[Tensor, Tensor]:
    """Adam on codebooks and scales, both divided by their root mean squares, so that one rate suits all layers."""
    units = [x.square().mean().sqrt().clamp(min=torch.finfo(h.dtype).tiny) for x in (books, scale)]
    norm = output_loss(w, h).sum()
    with torch.enable_grad():  # whatever the caller has set
        parts = [(x / unit).detach().requires_grad_() for x, unit in zip((books, scale), units, strict=True)]
        optimizer = torch.optim.Adam(parts, lr=learning_rate)
        for _ in range(steps):
            delta = w - (parts[1] * units[1])[:, None] * decode_sum(codes, parts[0] * units[0])
            loss = output_loss(delta, h).sum() / norm
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return parts[0].detach() * units[0], parts[1].detach() * units[1]
