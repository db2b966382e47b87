r"""The product with a weight in doubly quantized 4-bit codes, two codes in a byte.

Notation: x activations (tokens, inp), $y = x \hat W^\top$ with $\hat w_i = (\bar m + M_s u_{r_b})\, v_{q_i}$ as in
:mod:`mlcomp.quant.scalar.double_quantization`.
Source: Dettmers et al. 2023, arXiv:2305.14314, section 3.   Syllabus: 4.08
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mlcomp.checks import check_floating, check_values, narrowed
from mlcomp.context import isolated
from mlcomp.quant.scalar.double_quantization import DoubleQuantized


@dataclass(frozen=True)
class PackedNF4:
    """A weight for :func:`nf4_matmul`; fields as of :class:`mlcomp.quant.DoubleQuantized` but for the first.

    Attributes:
        codes: (out, inp/2) uint8, the first of two codes in the high half (bitsandbytes' layout).
    """

    codes: UInt8[Tensor, "out half"]
    scale_codes: UInt8[Tensor, " blocks"]
    largest: Float[Tensor, " scale_blocks"]
    mean: float
    block_size: int
    scale_block: int
    data_type: str
    scale_type: str

    @property
    def inp(self) -> int:
        """Columns of the weight."""
        return 2 * self.codes.shape[1]

    @isolated
    def dequantize(self) -> Float[Tensor, "out inp"]:
        """Return the weight (out, inp), float32."""
        codes = torch.stack((self.codes >> 4, self.codes & 15), -1).flatten(1)
        rest = (self.scale_codes, self.largest, self.mean, self.block_size, self.scale_block)
        return DoubleQuantized(codes, *rest, self.data_type, self.scale_type).dequantize()

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scale codes, float32 maxima and the mean."""
        return self.codes.nbytes + self.scale_codes.nbytes + self.largest.nbytes + 4


@isolated
def pack_nf4(weight: DoubleQuantized) -> PackedNF4:
    """Lay out a doubly quantized weight for :func:`nf4_matmul`.

    Raises:
        ValueError: rows that are no whole number of blocks, or of bytes. TypeError: not a :class:`DoubleQuantized`.
    Guarantee: ``dequantize`` returns the same weight, bit for bit.
    """
    if not isinstance(weight, DoubleQuantized):
        raise TypeError(f"weight must come from double_quantize, got {type(weight).__name__}")
    inp = weight.codes.shape[1]
    if inp % weight.block_size or inp % 2 or weight.before:
        raise ValueError(f"a row must be whole blocks of {weight.block_size} and whole bytes, got {inp} columns")
    codes = (weight.codes[:, 0::2] << 4) | weight.codes[:, 1::2]
    rest = (weight.scale_codes, weight.largest, weight.mean, weight.block_size, weight.scale_block)
    return PackedNF4(codes, *rest, weight.data_type, weight.scale_type)


@isolated
def nf4_matmul(x: Float[Tensor, "tokens inp"], weight: PackedNF4) -> Float[Tensor, "tokens out"]:
    """Return x · Ŵᵀ in the dtype of x.

    Args:
        x: (tokens, inp), any float dtype; not modified.
        weight: from :func:`pack_nf4`.
    Raises:
        ValueError: x does not fit the weight, or holds NaN or inf; a result beyond its dtype. TypeError: not floating
            point, not packed.
    Guarantee: computed in float32 (float64 stays) and rounded once.
    Cost: this is the readable version: it dequantizes the whole weight.
    """
    check_packed_nf4(x, weight)
    check_values("x", x)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return narrowed(x.to(wide) @ weight.dequantize().to(wide).T, x.dtype)


def check_packed_nf4(x: Tensor, weight: PackedNF4) -> None:
    """Raise unless these are operands of :func:`nf4_matmul`."""
    if not isinstance(weight, PackedNF4):
        raise TypeError(f"weight must come from pack_nf4, got {type(weight).__name__}")
    check_floating("x", x)
    if x.ndim != 2 or x.shape[1] != weight.inp:
        raise ValueError(f"x must be (tokens, {weight.inp}), got {tuple(x.shape)}")
