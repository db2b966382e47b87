r"""Which keeps more of a tensor at the same size, pruning or quantization, and from which kurtosis on.

Notation: κ kurtosis, b bits per weight, SNR in decibels.
Source: Kuzmin et al. 2023, arXiv:2307.02973, section 3.   Syllabus: 1.22
"""

import math
from dataclasses import dataclass

from mlcomp.compare.pruning_snr import pruning_snr
from mlcomp.compare.quantization_snr import quantization_snr
from mlcomp.context import isolated
from mlcomp.sources.source import Source
from mlcomp.sources.student_t import student_t


@dataclass(frozen=True)
class Comparison:
    """Both signal-to-noise ratios [dB] of one source at one size."""

    bits: int
    quantization_db: float
    pruning_db: float

    @property
    def advantage_db(self) -> float:
        """Quantization's lead over pruning [dB]; negative where pruning is better."""
        return self.quantization_db - self.pruning_db


@isolated
def compare(source: Source, *, bits: int, storage: str = "values", zero: str = "on_grid") -> Comparison:
    """Return the SNR of the best b-bit grid and of magnitude pruning at the size of b bits.

    Args:
        source, bits, zero: see :func:`mlcomp.compare.quantization_snr`.
        storage: see :func:`mlcomp.compare.kept_share`; "values" is the paper's count.
    """
    quantized = quantization_snr(source, bits=bits, zero=zero).snr_db
    return Comparison(bits, quantized, pruning_snr(source, bits=bits, storage=storage))


@isolated
def crossover_kurtosis(
    bits: int, *, storage: str = "values", limit: float = 1000.0, largest: float = 4000.0
) -> float:
    r"""Return the kurtosis of a cut-off Student t above which pruning has the higher SNR at ``bits`` bits.

    Args:
        bits: 1 to 8.
        storage: see :func:`mlcomp.compare.kept_share`.
        limit: where t is cut off (see :func:`mlcomp.sources.student_t`).
        largest: the largest kurtosis that is looked at.
    Returns:
        κ to three digits or better; infinite where quantization still leads at ``largest``.
    """

    def lead(kurtosis: float) -> float:
        return compare(student_t(kurtosis, limit=limit), bits=bits, storage=storage).advantage_db

    low, high = math.log(3.01), math.log(largest)
    if lead(math.exp(high)) > 0:
        return math.inf
    if lead(math.exp(low)) <= 0:
        raise ValueError(f"at {bits} bits pruning leads already for a nearly Gaussian density: there is no crossover")
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if lead(math.exp(middle)) > 0 else (low, middle)
    return math.exp((low + high) / 2)
