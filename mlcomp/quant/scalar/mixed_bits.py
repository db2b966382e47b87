r"""A tensor whose groups of weights have codes of different lengths, and its packing to a stream of bytes.

Notation: one range [m, M] for the tensor; a group with b bits has the codes $q = \mathrm{round}((w - m)/\Delta_b)$,
$\Delta_b = (M - m)/(2^b - 1)$, b from 1 to 16.
Layout: the bit widths less one, 4 bits each; then, width after width, the codes of its groups: the lower 8 bits of
each code, then its upper bits.
Source: Défossez, Adi, Synnaeve 2021, arXiv:2104.09987, section 3.3 (the format; the layout is ours).   Syllabus: 1.10
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from mlcomp.checks import check_tensor, check_values
from mlcomp.context import isolated
from mlcomp.formats.packing import pack, packed_nbytes, unpack
from mlcomp.formats.stored import Stored

_WIDTHS = range(1, 17)


@dataclass(frozen=True)
class MixedBits:
    """Codes of a tensor in groups of their own widths.

    Attributes:
        codes: (count,) int32 in row-major order, 0 … 2^b − 1 of its group.
        bits: (groups,) uint8, the width of each group, 1 to 16.
        low, high: the tensor's range [weight units], 0-dimensional.
        group_size: weights of a group; the last one may be shorter.
        shape: of the tensor.
    """

    codes: Int[Tensor, " count"]
    bits: UInt8[Tensor, " groups"]
    low: Float[Tensor, ""]
    high: Float[Tensor, ""]
    group_size: int
    shape: tuple[int, ...]

    @isolated
    def dequantize(self) -> Tensor:
        """Return the values, in the dtype of ``low``."""
        # float64: 2^16 steps of a float32 range would be rounded twice.
        delta = (self.high.double() - self.low.double()) / (2.0 ** self._widths().double() - 1)
        return (self.low.double() + self.codes * delta).to(self.low.dtype).reshape(self.shape)

    @isolated
    def pack(self) -> UInt8[Tensor, " nbytes"]:
        """Return the widths and codes as a stream of bytes; the range is stored beside it."""
        parts = [pack(self.bits - 1, 4)]
        widths = self._widths()
        for bits in _WIDTHS:
            codes = self.codes[widths == bits]
            parts.append(pack(codes & 255, min(bits, 8)))
            if bits > 8:
                parts.append(pack(codes >> 8, bits - 8))
        return torch.cat(parts)

    @classmethod
    @isolated
    def unpack(
        cls, stream: UInt8[Tensor, " nbytes"], *, low: Tensor, high: Tensor, group_size: int, shape: tuple[int, ...]
    ) -> "MixedBits":
        """Return what :meth:`pack` made into a stream.

        Raises:
            ValueError: the stream has not the length that its widths ask for.
        """
        count = torch.Size(shape).numel()
        groups = -(-count // group_size)
        at = packed_nbytes(groups, 4)
        bits = unpack(stream[:at], 4, groups) + 1
        widths = bits.repeat_interleave(group_size)[:count]
        codes = torch.zeros(count, dtype=torch.int32, device=stream.device)
        for width in _WIDTHS:
            chosen = widths == width
            number = int(chosen.sum())
            for shift, part in ((0, min(width, 8)), (8, width - 8)):
                if part > 0:
                    end = at + packed_nbytes(number, part)
                    codes[chosen] |= unpack(stream[at:end], part, number).to(torch.int32) << shift
                    at = end
        if at != len(stream):
            raise ValueError(f"the widths ask for {at} bytes, and the stream has {len(stream)}")
        return cls(codes, bits, low, high, group_size, tuple(shape))

    @property
    def nbytes(self) -> int:
        """Bytes of the stream and of the range."""
        return mixed_bits_nbytes(self.bits, self.group_size, len(self.codes)) + self.low.nbytes + self.high.nbytes

    @property
    def bits_per_weight(self) -> float:
        """``nbytes`` in bits over the number of weights."""
        return 8 * self.nbytes / len(self.codes)

    def stored(self) -> Stored:
        """Return the stream and the range. The widths say where a code lies, so no rows are decoded alone."""
        facts = {"shape": list(self.shape), "group_size": self.group_size}
        return Stored("mixed_bits", {"stream": self.pack(), "low": self.low, "high": self.high}, facts)

    @classmethod
    def from_stored(cls, stored: Stored) -> "MixedBits":
        """Return what was stored."""
        low, high = stored.tensors["low"], stored.tensors["high"]
        size = stored.facts["group_size"]
        return cls.unpack(stored.tensors["stream"], low=low, high=high, group_size=size, shape=stored.shape)

    def _widths(self) -> Tensor:
        return self.bits.repeat_interleave(self.group_size)[: len(self.codes)]


def mixed_bits_nbytes(bits: UInt8[Tensor, " groups"], group_size: int, count: int) -> int:
    """Return the bytes of the packed stream of ``count`` codes, without packing them."""
    widths = bits.repeat_interleave(group_size)[:count]
    size = packed_nbytes(len(bits), 4)
    for width in _WIDTHS:
        number = int((widths == width).sum())
        size += packed_nbytes(number, min(width, 8)) + packed_nbytes(number, max(width - 8, 0))
    return size


@isolated
def quantize_mixed(
    weight: Float[Tensor, "..."], bits: UInt8[Tensor, " groups"], *, group_size: int | None
) -> MixedBits:
    """Round each group of a tensor to the nearest of its 2^b points, which span the range of the whole tensor.

    Args:
        weight: any shape, computed in float64; not modified.
        bits: (groups,) uint8, 1 to 16.
        group_size: weights of a group, in row-major order; None: all in one.
    Raises:
        ValueError: an empty weight, NaN or inf, widths outside 1 … 16 or not one for each group.
            TypeError: weight is not floating point.
    Guarantee: |w − ŵ| ≤ Δ_b/2 up to rounding. A constant tensor is exact.
    """
    check_tensor("weight", weight)
    if weight.numel() == 0:
        raise ValueError("weight must have at least one entry")
    check_values("weight", weight)
    check_tensor("bits", bits)
    size = weight.numel() if group_size is None else group_size
    groups = -(-weight.numel() // size)
    if bits.dtype != torch.uint8 or bits.shape != (groups,) or int(bits.min()) < 1 or int(bits.max()) > 16:
        raise ValueError(
            f"bits must be {groups} uint8 from 1 to 16, one for each group, got {bits.dtype} {tuple(bits.shape)}"
        )
    flat = weight.detach().reshape(-1)
    flat = flat if flat.dtype == torch.float64 else flat.float()
    low, high = torch.aminmax(flat)
    most = 2.0 ** bits.repeat_interleave(size)[: len(flat)].double() - 1
    delta = (high.double() - low.double()) / most
    # A constant tensor has no step: its code is 0, which decodes to the constant.
    place = torch.where(delta > 0, (flat.double() - low.double()) / delta, torch.zeros_like(delta))
    codes = torch.minimum(torch.round(place), most).to(torch.int32)
    return MixedBits(codes, bits.clone(), low, high, size, tuple(weight.shape))
