r"""How well b-bit uniform quantization can keep a tensor: the signal-to-noise ratio at the best step.

Notation: W weight, s step, b bits, $c_i$ grid values, SNR = $10 \log_{10}(E W^2 / E(W - Q(W))^2)$ in decibels.
Source: Kuzmin et al. 2023, arXiv:2307.02973, section 3 (the comparison); Max 1960, IRE Trans. Inform. Theory 6(1),
Table II (the best steps for a Gaussian).   Syllabus: 1.22, 1.02
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import check_bits, check_choice
from mlcomp.context import isolated
from mlcomp.quant.scalar.codebook import cells_between, nearest, squared_error
from mlcomp.sources.source import Source

# Steps tried first, as shares of the step whose grid reaches the largest value; then golden section around the best.
_SHARES = torch.logspace(-3.5, 0, 120, dtype=torch.float64)
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class QuantizationSNR:
    """The best grid: SNR [dB], its step [weight units], and the code of the value 0 (a half where 0 is between)."""

    snr_db: float
    step: float
    zero: float


@isolated
def quantization_snr(source: Source, *, bits: int, zero: str = "on_grid") -> QuantizationSNR:
    r"""Return the SNR of rounding to $2^b$ equally spaced values, at the step of least mean squared error.

    Args:
        source: see :mod:`mlcomp.sources`.
        bits: 1 to 8.
        zero: "on_grid" puts 0 at the code $2^{b-1}$ or, mirrored, $2^{b-1}-1$, whichever is better; "between" puts
            it midway between two values, so that the grid is symmetric (Max's quantizer).
    Raises:
        ValueError: bits outside 1..8, an unknown ``zero``.
    Guarantee: no step on a grid of 120 from max|w|·10^−3.5 to max|w| per code has a smaller error.
    Cost: 10 to 200 ms.
    """
    check_bits(bits)
    check_choice("zero", zero, ("on_grid", "between"))
    middle = 2 ** (bits - 1)
    places = (float(middle), middle - 1.0) if zero == "on_grid" else (middle - 0.5,)
    if source.symmetric:
        places = places[:1]  # its mirror is the same
    best = min((_best_step(source, bits, place) for place in places), key=lambda found: found[0])
    error, step, place = best
    return QuantizationSNR(10 * math.log10(source.energy / error) if error > 0 else math.inf, step, place)


def uniform_error(source: Source, steps: Float[Tensor, " n"], *, bits: int, zero: float) -> Float[Tensor, " n"]:
    r"""Return the mean squared error of the grids $c_i = s\,(i - z)$, i = 0 … 2^b − 1, one for each step s."""
    values = steps[:, None] * (torch.arange(2**bits, dtype=torch.float64) - zero)
    return squared_error(cells_between(source, nearest(values)), values)


def _best_step(source: Source, bits: int, place: float) -> tuple[float, float, float]:
    """Return (error, step, place): the best of the coarse grid, refined by golden section."""

    def error(*steps: float) -> Tensor:
        return uniform_error(source, torch.tensor(steps, dtype=torch.float64), bits=bits, zero=place)

    steps = source.bound / max(place, 0.5) * _SHARES
    errors = uniform_error(source, steps, bits=bits, zero=place)
    at = int(errors.argmin())
    low, high = float(steps[max(at - 1, 0)]), float(steps[min(at + 1, len(steps) - 1)])
    found = [(float(errors[at]), float(steps[at]), place)]
    for _ in range(30):  # narrows a bracket of two coarse steps by 0.618³⁰ = 5e-7
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        first, second = error(left, right).tolist()
        low, high = (low, right) if first <= second else (left, high)
        found.append(min((first, left, place), (second, right, place)))
    return min(found)
