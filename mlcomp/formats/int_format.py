r"""Whole numbers of b bits as bit patterns: decode, encode, every value, the spacing.

Notation: b bits. Two's complement: $-2^{b-1} \dots 2^{b-1}-1$; unsigned: $0 \dots 2^b-1$.
Source: Goldberg 1991, "What every computer scientist should know about floating-point arithmetic", ACM Computing
Surveys 23(1), section 4 (rounding to even); two's complement as in ISO C23, 6.2.6.2.   Syllabus: 1.01
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from mlcomp.checks import check_codes, check_floating, check_whole
from mlcomp.context import isolated


@dataclass(frozen=True)
class IntFormat:
    """Whole numbers of b bits: two's complement, or unsigned. One bit signed is {−1, 0}, unsigned {0, 1}.

    Attributes:
        bits: 1 to 32.
        signed: two's complement.
    Raises:
        ValueError: bits outside 1 to 32.
    """

    bits: int
    signed: bool = True

    def __post_init__(self) -> None:
        check_whole("bits", self.bits, 1, 32)

    @property
    def max(self) -> float:
        """2^(b−1) − 1, or 2^b − 1 unsigned."""
        return float(2 ** (self.bits - self.signed) - 1)

    @property
    def min(self) -> float:
        """−2^(b−1), or 0 unsigned."""
        return float(-(2 ** (self.bits - 1))) if self.signed else 0.0

    @isolated
    def decode(self, codes: Integer[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the numbers of bit patterns 0 … 2^b − 1, float64."""
        check_codes("codes", codes, 2**self.bits - 1)
        codes = codes.long()
        return torch.where(codes > int(self.max), codes - 2**self.bits, codes).double()

    @isolated
    def encode(self, x: Float[Tensor, "*shape"], *, saturate: bool = True) -> Integer[Tensor, "*shape"]:
        """Return the pattern of the nearest whole number, ties to even.

        Args:
            x: any float dtype.
            saturate: numbers beyond the range go to its ends, infinities too (the lecture's clip). False: an
                overflow is an error, since what would be stored is another number altogether.
        Raises:
            TypeError: x is not floating point.
            ValueError: NaN; overflow without ``saturate``.
        """
        check_floating("x", x)
        if bool(torch.isnan(x).any()):
            raise ValueError(f"x holds {int(torch.isnan(x).sum())} NaN, and whole numbers have no pattern for it")
        q = torch.round(x.double())
        outside = (q < self.min) | (q > self.max)
        if not saturate and bool(outside.any()):
            raise ValueError(f"{int(outside.sum())} value(s) are outside {self.min:g} … {self.max:g}")
        return q.clamp(self.min, self.max).long() & (2**self.bits - 1)

    @isolated
    def round(self, x: Float[Tensor, "*shape"], *, saturate: bool = True) -> Float[Tensor, "*shape"]:
        """Return the nearest numbers of the format in float64: decode(encode(x))."""
        return self.decode(self.encode(x, saturate=saturate))

    @isolated
    def values(self) -> Float[Tensor, " n"]:
        """Return all numbers, ascending, float64. At most 16 bits.

        Raises:
            ValueError: more bits.
        """
        if self.bits > 16:
            raise ValueError(f"a list of all 2^{self.bits} values is too long; up to 16 bits are listed")
        return torch.arange(self.min, self.max + 1, dtype=torch.float64)

    @isolated
    def spacing(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return 1 inside the range, NaN outside."""
        inside = (x >= self.min) & (x <= self.max)
        return torch.where(inside, torch.ones_like(x, dtype=torch.float64), torch.nan)
