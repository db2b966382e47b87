r"""Bit-level scaling laws: how well a family of models of growing size does at equal total bits.

Notation: N bits that a model takes in storage, k bits per parameter, B block size, L held-out loss [bits per byte].
Source: Dettmers & Zettlemoyer 2022, arXiv:2212.09720, sections 2–5.   Syllabus: 1.12
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from mlcomp.checks import check_values, check_whole
from mlcomp.context import isolated, isolated_run
from mlcomp.layerwise.fit import copy_model
from mlcomp.modes import evaluating, home
from mlcomp.quant.scalar.blockwise import blockwise


@isolated_run
def bits_per_byte(
    model: nn.Module, text: Int64[Tensor, " length"], *, context: int = 256, batch_size: int = 16
) -> float:
    r"""Return $-\frac1n\sum \log_2 p(x_t \mid x_{<t})$ of a byte-level model on ``text``; the mode is kept.

    The text is cut into windows of ``context`` predicted bytes. Each window stands alone, and starts with the byte
    before its first prediction; what is left over at the end is not counted.

    Args:
        model: (n, length) bytes → (n, length, 256) logits of the next byte.
        text: bytes as whole numbers 0 … 255, more than ``context`` of them.
        context: bytes predicted in a window.
        batch_size: windows at a time; it changes the memory, not the result.
    Raises:
        ValueError: a text that is not longer than one window, or a size below 1.
    """
    for name, value in (("context", context), ("batch_size", batch_size)):
        check_whole(name, value, 1)
    if len(text) <= context:
        raise ValueError(f"the text must be longer than one window of {context} bytes, got {len(text)}")
    windows = text.unfold(0, context + 1, context).to(home(model))
    total = 0.0
    with evaluating(model):
        for batch in windows.split(batch_size):
            logits = model(batch[:, :-1]).flatten(0, 1)
            total += float(F.cross_entropy(logits.float(), batch[:, 1:].flatten(), reduction="sum"))
    return total / math.log(2) / (len(windows) * context)


class QuantizedModel(NamedTuple):
    """A copy of a model with quantized matrices, and the bits that it takes, everything counted."""

    model: nn.Module
    total_bits: int


@isolated
def quantize_matrices(
    model: nn.Module, *, bits: int, block_size: int | None = 64, data_type: str = "int"
) -> QuantizedModel:
    """Return ``model`` with every matrix (embedding and head, too) quantized block-wise; the rest in float16.

    Args:
        model: not modified; tied matrices are one parameter, counted once.
        bits: k, as for :func:`mlcomp.quant.blockwise`; 16: everything in float16.
        block_size: values that share a float16 scale. None: one scale for each matrix.
        data_type: "int", "float", "quantile" or "nf4".
    Returns:
        The copy, in float32, and its bits: codes, scales, stored levels, and 16 for each parameter that is no matrix.
    """
    result, total = copy_model(model), 0
    with torch.no_grad():
        for parameter in result.parameters():
            if parameter.ndim == 2 and bits != 16:
                coded = blockwise(parameter, bits=bits, block_size=block_size, data_type=data_type)
                parameter.copy_(coded.dequantize())
                total += 8 * coded.nbytes
            else:
                parameter.copy_(parameter.half())
                total += 16 * parameter.numel()
    return QuantizedModel(result, total)


@dataclass(frozen=True)
class PowerLaw:
    r"""$L(N) = E + A\,N^{-\alpha}$ with N total bits. ``residual`` is the root of the mean squared misfit of L."""

    floor: float
    amplitude: float
    exponent: float
    residual: float

    def __call__(self, total_bits: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the loss that the law predicts."""
        return self.floor + self.amplitude * total_bits.double() ** -self.exponent


@isolated
def fit_power_law(total_bits: Float[Tensor, " n"], loss: Float[Tensor, " n"]) -> PowerLaw:
    r"""Fit $L(N) = E + A\,N^{-\alpha}$ with E ≥ 0 by least squares: α from 0.02, 0.03, …, 1, the rest in closed form.

    Args:
        total_bits: at least three different positive numbers.
        loss: one for each.
    Raises:
        ValueError: fewer than three sizes, sizes that are not positive, NaN or infinity.
    Guarantee: no other law with an exponent of that list and E ≥ 0 has a smaller squared misfit.
    """
    check_values("total_bits", total_bits)
    check_values("loss", loss)
    n, y = total_bits.detach().double(), loss.detach().double()
    if n.ndim != 1 or n.shape != y.shape or len(n.unique()) < 3 or not (n > 0).all():
        raise ValueError(
            f"a law needs at least three different positive sizes and a loss for each, got {n.tolist()} "
            f"and {tuple(y.shape)} losses"
        )
    least, best = math.inf, None
    for exponent in (i / 100 for i in range(2, 101)):
        power = (n / n.max()) ** -exponent  # of moderate size, so that the two columns differ in float64
        columns = torch.stack((torch.ones_like(power), power), dim=1)
        floor, amplitude = torch.linalg.lstsq(columns, y).solution.tolist()
        if floor < 0:
            floor, amplitude = 0.0, float((power @ y) / (power @ power))
        misfit = float((floor + amplitude * power - y).square().mean())
        if best is None or misfit < least:
            least = misfit
            best = PowerLaw(floor, amplitude * float(n.max()) ** exponent, exponent, math.sqrt(misfit))
    assert best is not None  # the list of exponents is not empty
    return best


@isolated
def best_precision(
    curves: Mapping[int, tuple[Sequence[int | float], Sequence[float]]], total_bits: Float[Tensor, " n"]
) -> list[int | None]:
    """Return, for each budget of total bits, the precision k whose models do best at exactly that size.

    Between two models of a family the loss is interpolated linearly in log(total bits).

    Args:
        curves: k → (total bits of each model, ascending; their losses).
        total_bits: the budgets.
    Returns:
        k of the least loss; None where no curve reaches (nothing is extrapolated).
    Raises:
        ValueError: no curve, sizes that do not ascend, budgets that are not positive.
    """
    check_values("total_bits", total_bits)
    if total_bits.ndim != 1 or not (total_bits > 0).all():
        raise ValueError(f"total_bits must be positive numbers (n,), got {total_bits.tolist()}")
    if not curves:
        raise ValueError("curves must hold at least one precision")
    winners: list[int | None] = []
    tables = {}
    for k, (sizes, losses) in curves.items():
        x, y = torch.tensor(sizes, dtype=torch.float64).log(), torch.tensor(losses, dtype=torch.float64)
        if len(x) != len(y) or len(x) < 2 or not (x.diff() > 0).all():
            raise ValueError(f"sizes of k = {k} must ascend, at least two, with a loss each; got {list(sizes)}")
        tables[k] = (x, y)
    for budget in total_bits.double().log():
        reach = {k: _interpolate(x, y, budget) for k, (x, y) in tables.items() if x[0] <= budget <= x[-1]}
        winners.append(min(reach, key=reach.__getitem__) if reach else None)
    return winners


def _interpolate(x: Tensor, y: Tensor, at: Tensor) -> float:
    i = int(torch.searchsorted(x, at, right=True).clamp(1, len(x) - 1))
    return float(torch.lerp(y[i - 1], y[i], (at - x[i - 1]) / (x[i] - x[i - 1])))
