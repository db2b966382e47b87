r"""Packing of small integer codes into a dense stream of bits: 3-bit codes really take 3 bits each.

Notation: b bits per code. Layout: the stream is little-endian throughout. Code i takes the bits
$ib, \dots, ib + b - 1$, its lowest bit first; bit k of the stream is bit $k \bmod 8$ (counted from the least
significant) of byte $\lfloor k/8 \rfloor$. The unused high bits of the last byte are zero.
For b = 8, 4, 2, 1 this is the usual layout with the first code in the lowest bits (``np.packbits`` with
``bitorder="little"`` for b = 1). Wider codes lie in planes: the stream of the lowest 8 bits of all codes, then that
of the next 8 bits, and so on.   Syllabus: 1.03, 2.09
"""

import math

import torch
from jaxtyping import Integer, UInt8
from torch import Tensor

from mlcomp.checks import check_bits, check_codes, check_tensor, check_whole
from mlcomp.context import isolated

# Bits of a code → a word with a byte for each code of a byte.
_WORDS = {4: torch.int16, 2: torch.int32, 1: torch.int64}


def packed_nbytes(count: int, bits: int) -> int:
    """Return the bytes of ``count`` packed codes: count · bits, rounded up to whole bytes."""
    return -(-count * bits // 8)


@isolated
def pack(codes: Integer[Tensor, "*shape"], bits: int) -> UInt8[Tensor, " nbytes"]:
    """Pack codes into a dense stream of bytes, in row-major order.

    Args:
        codes: any shape and integer dtype, each 0 … 2^bits − 1; not modified.
        bits: bits per code, 1 to 8.
    Returns:
        (packed_nbytes(count, bits),) uint8. The shape is not stored: :func:`unpack` is told it.
    Raises:
        ValueError: bits outside 1..8, or a code that does not fit. TypeError: codes are not integers.
    Guarantee: unpack(pack(codes, bits), bits, codes.shape) equals codes, for every shape, odd and empty ones too.
    Cost: one pass; 8 bytes of working memory for every 8 codes.
    """
    check_bits(bits)
    check_codes("codes", codes, 2**bits - 1)
    flat = codes.reshape(-1)
    if bits in _WORDS:
        return _gathered(flat, bits)
    # Eight codes of b bits are exactly b bytes, and fit into one 64-bit word.
    groups = torch.nn.functional.pad(flat, (0, -len(flat) % 8)).reshape(-1, 8)
    word = torch.zeros(len(groups), dtype=torch.int64, device=codes.device)
    for i in range(8):
        word |= groups[:, i].long() << (i * bits)
    # For b = 8 the topmost code reaches the sign bit; the mask makes that harmless.
    stream = torch.stack([((word >> (8 * j)) & 255).to(torch.uint8) for j in range(bits)], dim=1)
    return stream.reshape(-1)[: packed_nbytes(len(flat), bits)].clone()


@isolated
def unpack(packed: UInt8[Tensor, " nbytes"], bits: int, shape: int | tuple[int, ...]) -> UInt8[Tensor, "..."]:
    """Return the codes that :func:`pack` stored.

    Args:
        packed: (packed_nbytes(count, bits),) uint8; not modified.
        bits: bits per code, 1 to 8, as packed.
        shape: the shape of the codes, or their number.
    Returns:
        codes uint8 of that shape.
    Raises:
        ValueError: bits outside 1..8, or the number of bytes is not that of ``shape``.
    """
    check_bits(bits)
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    count = math.prod(shape)
    need = packed_nbytes(count, bits)
    check_tensor("packed", packed)
    if packed.dtype != torch.uint8 or packed.shape != (need,):
        raise ValueError(
            f"{count} codes of {bits} bits are {need} bytes of uint8, "
            f"got {packed.dtype} of shape {tuple(packed.shape)}"
        )
    if bits in _WORDS:
        return _spread(packed, bits)[:count].reshape(shape)
    if bits == 8:
        return packed.clone().reshape(shape)
    stream = torch.nn.functional.pad(packed, (0, -need % bits)).reshape(-1, bits)
    word = torch.zeros(len(stream), dtype=torch.int64, device=packed.device)
    for j in range(bits):
        word |= stream[:, j].long() << (8 * j)
    codes = torch.stack([((word >> (i * bits)) & (2**bits - 1)).to(torch.uint8) for i in range(8)], dim=1)
    return codes.reshape(-1)[:count].reshape(shape)


def _gathered(codes: Tensor, bits: int) -> Tensor:
    """Return the bytes of codes that divide a byte."""
    each = 8 // bits
    parts = torch.nn.functional.pad(codes, (0, -len(codes) % each)).to(torch.uint8).reshape(-1, each)
    packed = parts[:, 0].clone(memory_format=torch.contiguous_format)
    for i in range(1, each):
        packed |= parts[:, i] << (i * bits)
    return packed


def _spread(packed: Tensor, bits: int) -> Tensor:
    """Return the codes of whole bytes, a byte each: a byte becomes a word of as many bytes as it has codes.

    Code i moves up by i·(8 − bits), from bit i·bits to bit 8·i. (On a little-endian machine, as files have it.)
    """
    dtype = _WORDS[bits]
    word = packed.to(dtype)
    codes = word.clone()
    for i in range(1, 8 // bits):
        codes |= word << (i * (8 - bits))
    codes &= int.from_bytes([2**bits - 1] * (8 // bits), "little")
    return codes.view(torch.uint8)


@isolated
def pack_planes(codes: Integer[Tensor, "*shape"], bits: int) -> UInt8[Tensor, " nbytes"]:
    """Pack codes of any width up to 31 bits; up to 8 bits this is :func:`pack`.

    Args:
        codes: any shape and integer dtype, each 0 … 2^bits − 1; not modified.
        bits: bits per code, 0 to 31. Codes of no bits are all 0 and take no byte.
    Returns:
        (packed_nbytes(count, bits),) uint8.
    Raises:
        ValueError: bits outside 0..31, or a code that does not fit. TypeError: codes are not integers.
    Guarantee: unpack_planes(pack_planes(codes, bits), bits, codes.shape) equals codes.
    """
    check_whole("bits", bits, 0, 31)
    check_codes("codes", codes, 2**bits - 1)
    if 1 <= bits <= 8:
        return pack(codes, bits)
    wide = codes.long()
    parts = [pack((wide >> at) & 255, 8) for at in range(0, bits - 7, 8)]
    if bits % 8:
        parts.append(pack(wide >> (bits - bits % 8), bits % 8))
    return torch.cat([torch.zeros(0, dtype=torch.uint8, device=codes.device), *parts])


@isolated
def unpack_planes(
    packed: UInt8[Tensor, " nbytes"], bits: int, shape: tuple[int, ...], *, start: int = 0, stop: int | None = None
) -> Integer[Tensor, "..."]:
    """Return the codes that :func:`pack_planes` stored, or those of some rows alone.

    Args:
        packed: (packed_nbytes(count, bits),) uint8; not modified.
        bits: bits per code, 0 to 31, as packed.
        shape: the shape of all codes.
        start, stop: the rows (first dimension) that are wanted; the bytes of others are not read. None: to the last.
    Returns:
        (stop − start, …) uint8 (of 8 bits: a view of ``packed``), or int32 for more than 8 bits.
    Raises:
        ValueError: bits outside 0..31, the number of bytes is not that of ``shape``, rows that it does not have.
    """
    check_whole("bits", bits, 0, 31)
    count, need = math.prod(shape), packed_nbytes(math.prod(shape), bits)
    check_tensor("packed", packed)
    if packed.dtype != torch.uint8 or packed.shape != (need,):
        raise ValueError(
            f"{count} codes of {bits} bits are {need} bytes of uint8, "
            f"got {packed.dtype} of shape {tuple(packed.shape)}"
        )
    if not shape:  # one code, which has no rows
        return unpack_planes(packed, bits, (1,))[0]
    stop = shape[0] if stop is None else stop
    if not 0 <= start <= stop <= shape[0]:
        raise ValueError(f"rows must lie in 0 … {shape[0]}, got {start} … {stop}")
    width = math.prod(shape[1:])
    first, last = start * width, stop * width
    lead = first % 8  # eight codes end on a whole byte, whatever their width
    planes = []
    offset = 0
    for at in range(0, bits, 8):
        b = min(8, bits - at)
        part = packed[offset + (first - lead) * b // 8 : offset + packed_nbytes(last, b)]
        planes.append((part if b == 8 else unpack(part, b, last - first + lead))[lead:])
        offset += packed_nbytes(count, b)
    if len(planes) == 1:
        codes = planes[0]
    else:
        dtype = torch.uint8 if bits == 0 else torch.int32
        codes = torch.zeros(last - first, dtype=dtype, device=packed.device)
        for at, plane in enumerate(planes):
            codes |= plane.to(dtype) << (8 * at)
    return codes.reshape(stop - start, *shape[1:])
