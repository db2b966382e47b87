r"""Time and energy of one layer by the roofline model, for any number formats and any kind of sparsity.

Notation: weight (out, inp), T tokens (columns of X, pixels, rows of a batch), P peak [operations/s], B bandwidth
[bytes/s]. The layer does 2·T·out·inp operations and moves its weight, its inputs and its outputs once:

$$t = \max\left(\frac{2\,T\,\mathrm{out}\cdot\mathrm{inp}}{P},\ \frac{\mathrm{bytes}}{B}\right)$$

What the numbers are: lower bounds. They leave out kernel launches, caches that keep the weight, decompression, and
every inefficiency; their use is to say what can pay and what cannot.

| sparsity of the weight | bytes | operations |
|---|---|---|
| "dense" | all values | all |
| "csr", "bitmask" | kept values and where they are | all: a tensor core multiplies the zeros, too |
| "n:m" | kept values and 2 bits each (2:4) | half the time for 2:4 where the chip has sparse tensor cores, else all |

Source: Williams, Waterman, Patterson 2009, "Roofline", Communications of the ACM 52(4); 2:4: Mishra et al. 2021,
arXiv:2104.08378, section 3.   Syllabus: 1.01, 1.18
"""

import math
from dataclasses import dataclass
from typing import TypedDict, Unpack

from mlcomp.checks import check_choice, check_pattern, check_sparsity
from mlcomp.cost.hardware import DRAM_PJ_PER_BYTE, ENERGY, Chip
from mlcomp.formats.number_format import NUMBER_FORMATS
from mlcomp.formats.storage import sparse_nbytes


class Storage(TypedDict, total=False):
    """How :func:`layer_nbytes` is told that a weight is stored."""

    storage: str
    sparsity: float
    pattern: tuple[int, int] | None
    extra_nbytes: int
    index_bits: int


@dataclass(frozen=True)
class LayerBytes:
    """What one pass over a layer moves, [bytes]: the weight with scales and metadata, inputs, outputs."""

    weight: int
    inputs: int
    outputs: int

    @property
    def total(self) -> int:
        """All three."""
        return self.weight + self.inputs + self.outputs


@dataclass(frozen=True)
class LayerTime:
    """Roofline time of a layer, [s], and its two bounds."""

    compute: float
    memory: float

    @property
    def total(self) -> float:
        """The larger of the two, since copies and arithmetic overlap."""
        return max(self.compute, self.memory)

    @property
    def bound(self) -> str:
        """What the layer waits for: "compute" or "memory"."""
        return "compute" if self.compute >= self.memory else "memory"


@dataclass(frozen=True)
class LayerEnergy:
    """Energy of a layer, [J]: multiply-adds, and bytes from and to DRAM."""

    compute: float
    memory: float

    @property
    def total(self) -> float:
        """The sum."""
        return self.compute + self.memory


def layer_nbytes(
    shape: tuple[int, int],
    tokens: int,
    *,
    weight: str,
    activation: str | None = None,
    storage: str = "dense",
    sparsity: float = 0.0,
    pattern: tuple[int, int] | None = None,
    extra_nbytes: int = 0,
    index_bits: int = 32,
) -> LayerBytes:
    """Return the bytes that one pass over a layer moves.

    Args:
        shape: (out, inp) of the weight. tokens: T, input vectors that share one reading of the weight.
        weight: a name in ``mlcomp.formats.NUMBER_FORMATS``.
        activation: format of inputs and outputs; None: as the weight. The product is computed in this format, so the
            weight must be in the same or in one of fewer bits, decoded on the chip.
        storage: "dense", "csr", "bitmask" or "n:m", as in :func:`mlcomp.formats.sparse_nbytes`.
        sparsity: share of zeros, for "csr" and "bitmask"; rounded to whole weights.
        pattern: (n, m) for "n:m".
        extra_nbytes: scales, zero points, codebooks: whatever comes on top of the values.
        index_bits: of "csr".
    Raises:
        ValueError: unknown format or storage, tokens or extra_nbytes out of range, a weight format that the
            activation's cannot hold, sparsity or pattern where the storage has no use for it.
    """
    activation = activation or weight
    for name in (weight, activation):
        check_choice("a format", name, NUMBER_FORMATS)
    weight_bits, activation_bits = NUMBER_FORMATS[weight].bits, NUMBER_FORMATS[activation].bits
    if weight != activation and weight_bits >= activation_bits:
        raise ValueError(f"a weight in {weight} would have to be rounded to multiply it in {activation}")
    if tokens < 1 or extra_nbytes < 0:
        raise ValueError(f"tokens must be at least 1 and extra_nbytes at least 0, got {tokens} and {extra_nbytes}")
    check_sparsity(sparsity)
    if sparsity and storage not in ("csr", "bitmask"):
        raise ValueError(f'sparsity belongs to storage "csr" or "bitmask", got {sparsity} with {storage!r}')
    if pattern is not None:
        check_pattern(pattern)
    out, inp = shape
    # "n:m" stores its slots whatever is in them, and dense everything.
    kept = out * inp - round(sparsity * out * inp) if storage in ("csr", "bitmask") else 0
    stored = sparse_nbytes(
        shape, kept, format=storage, value_bits=weight_bits, pattern=pattern, index_bits=index_bits
    )
    inputs, outputs = (math.ceil(tokens * width * activation_bits / 8) for width in (inp, out))
    return LayerBytes(stored + extra_nbytes, inputs, outputs)


def layer_time(
    shape: tuple[int, int],
    tokens: int,
    *,
    chip: Chip,
    weight: str,
    activation: str | None = None,
    **storage: Unpack[Storage],
) -> LayerTime:
    """Return the roofline time of a layer on ``chip``.

    Args:
        chip: e.g. ``mlcomp.cost.A100``.
        storage: ``storage``, ``sparsity``, ``pattern``, ``extra_nbytes``, ``index_bits`` of :func:`layer_nbytes`.
            Only pattern (2, 4) computes faster, and only in a format of ``chip.peak_2_4``.
    Raises:
        ValueError: as :func:`layer_nbytes`; a chip that does not compute in the activation's format.
    """
    nbytes = layer_nbytes(shape, tokens, weight=weight, activation=activation, **storage)
    peak = peak_rate(chip, activation or weight, pattern=storage.get("pattern"))
    return LayerTime(2 * tokens * shape[0] * shape[1] / peak, nbytes.total / chip.bandwidth)


def layer_energy(
    shape: tuple[int, int],
    tokens: int,
    *,
    weight: str,
    activation: str | None = None,
    accumulate: str | None = None,
    skip_zeros: bool = False,
    **storage: Unpack[Storage],
) -> LayerEnergy:
    """Return the energy of a layer's multiply-adds and of its bytes from DRAM, by Horowitz's table.

    Args:
        accumulate: format of the additions; None: that of the multiplications, as in the lecture's table. Processors
            add int8 products in int32.
        skip_zeros: count the multiply-adds of kept weights alone: what the best hardware for the sparsity could save.
        storage: as in :func:`layer_time`.
    Raises:
        ValueError: as :func:`layer_nbytes`; a format without a published figure (int8, fp16, int32, fp32 have one).
    """
    nbytes = layer_nbytes(shape, tokens, weight=weight, activation=activation, **storage)
    multiply = activation or weight
    for name in (multiply, accumulate or multiply):
        if name not in ENERGY:
            raise ValueError(f"Horowitz's table has no figure for {name!r}; it has {', '.join(ENERGY)}")
    density = 1.0
    if skip_zeros:
        zeros, block = storage.get("pattern") or (0, 1)
        density = 1 - storage.get("sparsity", 0.0) - zeros / block
    mac = ENERGY[multiply].mul + ENERGY[accumulate or multiply].add
    macs = density * tokens * shape[0] * shape[1]
    return LayerEnergy(1e-12 * mac * macs, 1e-12 * DRAM_PJ_PER_BYTE * nbytes.total)


def balance_tokens(
    shape: tuple[int, int], *, chip: Chip, weight: str, activation: str | None = None, **storage: Unpack[Storage]
) -> float:
    """Return the number of tokens at which a layer stops waiting for memory and starts waiting for arithmetic.

    It is where the two bounds of :func:`layer_time` cross, as a real number; infinite where the layer waits for
    memory at any number of tokens.
    """
    nbytes = layer_nbytes(shape, 1, weight=weight, activation=activation, **storage)
    compute = activation or weight
    peak = peak_rate(chip, compute, pattern=storage.get("pattern"))
    vectors = (shape[0] + shape[1]) * NUMBER_FORMATS[compute].bits / 8
    per_token = 2 * shape[0] * shape[1] / peak - vectors / chip.bandwidth
    return nbytes.weight / chip.bandwidth / per_token if per_token > 0 else math.inf


def peak_rate(chip: Chip, compute: str, *, pattern: tuple[int, int] | None = None) -> float:
    """Return the peak operations per second of ``chip`` in a format, zeros of a 2:4 weight counted as done.

    Raises:
        ValueError: the chip does not compute in this format.
    """
    if compute not in chip.peak:
        raise ValueError(f"{chip.name} does not compute in {compute!r}; it does in {', '.join(chip.peak)}")
    if pattern == (2, 4):
        return chip.peak_2_4.get(compute, chip.peak[compute])
    return chip.peak[compute]
