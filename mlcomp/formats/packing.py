r"""Packing of small integer codes into a dense stream of bits: 3-bit codes really take 3 bits each.

Notation: b bits per code. Layout: the stream is little-endian throughout. Code i takes the bits
$ib, \dots, ib + b - 1$, its lowest bit first; bit k of the stream is bit $k \bmod 8$ (counted from the least
significant) of byte $\lfloor k/8 \rfloor$. The unused high bits of the last byte are zero.
For b = 8, 4, 2, 1 this is the usual layout with the first code in the lowest bits (``np.packbits`` with
``bitorder="little"`` for b = 1).   Syllabus: 1.03, 2.09
"""

import math

import torch
from jaxtyping import Integer, UInt8
from torch import Tensor

from mlcomp.checks import check_bits, check_codes, check_tensor
from mlcomp.context import isolated


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
    stream = torch.nn.functional.pad(packed, (0, -need % bits)).reshape(-1, bits)
    word = torch.zeros(len(stream), dtype=torch.int64, device=packed.device)
    for j in range(bits):
        word |= stream[:, j].long() << (8 * j)
    codes = torch.stack([((word >> (i * bits)) & (2**bits - 1)).to(torch.uint8) for i in range(8)], dim=1)
    return codes.reshape(-1)[:count].reshape(shape)
