r"""How well magnitude pruning keeps a tensor at the size of b-bit quantization: the signal-to-noise ratio.

Notation: W weight, b bits per weight to spend, p share of weights kept, SNR = $10 \log_{10}(E W^2 / E[W^2; pruned])$
in decibels. Kept weights stay in 16 bits.
Source: Kuzmin et al. 2023, arXiv:2307.02973, section 3: sparsity 1 − b/16.   Syllabus: 1.22
"""

import math

from mlcomp.checks import check_choice, check_interval
from mlcomp.context import isolated
from mlcomp.sources.source import Source


@isolated
def kept_share(bits: float | int, *, storage: str = "values") -> float:
    r"""Return the share p of 16-bit weights that ``bits`` bits per weight pay for.

    Args:
        bits: bits per weight in all, 0 to 16.
        storage: what is paid besides the values. "values": nothing, $16p = b$ (the paper's count, as if the places
            came free). "bitmask": one bit a weight, $16p + 1 = b$. "entropy": what places cost at the least,
            $16p + h(p) = b$ with the binary entropy h.
    Raises:
        ValueError: bits outside 0..16, unknown storage.
    Guarantee: 0 ≤ p ≤ 1; "bitmask" never keeps more than "entropy", which keeps no more than "values".
    """
    check_interval("bits", bits, "[0, 16]")  # the weights that are kept have 16
    check_choice("storage", storage, ("values", "bitmask", "entropy"))
    if storage == "values":
        return bits / 16
    if storage == "bitmask":
        return max(0.0, bits - 1) / 16 if bits < 16 else 1.0  # at 16 bits nothing is pruned and no mask is needed
    if bits >= 16:
        return 1.0
    low, high = 0.0, 1.0  # 16p + h(p) rises up to p = 65536/65537, where it is just above 16
    for _ in range(60):
        p = (low + high) / 2
        low, high = (p, high) if 16 * p + _entropy(p) < bits else (low, p)
    return low


@isolated
def pruning_snr(source: Source, *, bits: float | int, storage: str = "values") -> float:
    r"""Return the SNR [dB] of keeping the largest weights exactly and setting the others to zero.

    Args:
        source: see :mod:`mlcomp.sources`.
        bits: bits per weight in all, 0 to 16.
        storage: what is paid besides the kept values (see :func:`kept_share`).
    Raises:
        ValueError: as :func:`kept_share`.
    Guarantee: 0 dB when nothing is kept, infinite when nothing is lost, and never less with more bits.
    """
    lost = source.smallest_energy(1 - kept_share(bits, storage=storage))
    return 10 * math.log10(source.energy / lost) if lost > 0 else math.inf


def _entropy(p: float) -> float:
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p) if 0 < p < 1 else 0.0
