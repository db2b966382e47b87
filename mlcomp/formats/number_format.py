r"""Number formats bit by bit: sign, exponent and mantissa; decode, encode, every value, the spacing.

Notation: s sign bit, E exponent field of e bits, M mantissa field of m bits, β bias, x value.
Normal numbers (E > 0): $x = (-1)^s\, 2^{E-\beta}\,(1 + M/2^m)$. Subnormal numbers (E = 0):
$x = (-1)^s\, 2^{1-\beta}\, M/2^m$. Whole numbers: :class:`IntFormat`.

| name | e | m | bias | largest | special values |
|---|---|---|---|---|---|
| fp32 | 8 | 23 | 127 | 3.40e38 | infinities and NaN |
| tf32 | 8 | 10 | 127 | 3.40e38 | infinities and NaN; 19 bits used, 32 stored |
| fp16 | 5 | 10 | 15 | 65504 | infinities and NaN |
| bf16 | 8 | 7 | 127 | 3.39e38 | infinities and NaN |
| fp8_e4m3 | 4 | 3 | 7 | 448 | NaN, no infinities (the "fn" variant) |
| fp8_e5m2 | 5 | 2 | 15 | 57344 | infinities and NaN |

Source: IEEE 754-2019; fp8: Micikevicius et al. 2022, arXiv:2209.05433, table 1.   Syllabus: 1.01
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from mlcomp.checks import check_choice, check_codes, check_floating
from mlcomp.context import isolated
from mlcomp.formats.int_format import IntFormat

SPECIALS = ("inf_nan", "nan", "none")


@dataclass(frozen=True)
class FloatFormat:
    """A binary floating-point format. The bit pattern of a number is an integer, the sign its highest bit.

    Attributes:
        exponent_bits: e, 2 to 8.
        mantissa_bits: m, 1 to 23; the leading 1 of a normal number is not stored.
        bias: β; None: 2^(e−1) − 1, as in IEEE 754.
        specials: "inf_nan": the highest exponent field means infinity (M = 0) or NaN. "nan": only the pattern of
            all ones is NaN and there is no infinity, so the highest field holds numbers (fp8 e4m3 "fn"). "none":
            every pattern is a number (fp4 e2m1).
        stored_bits: bits in memory where they are more than 1 + e + m (tf32 is stored as fp32).
    Raises:
        ValueError: a field outside its limits.
    """

    exponent_bits: int
    mantissa_bits: int
    bias: int | None = None
    specials: str = "inf_nan"
    stored_bits: int | None = None

    def __post_init__(self) -> None:
        if not 2 <= self.exponent_bits <= 8 or not 1 <= self.mantissa_bits <= 23:
            raise ValueError(
                "a format has 2 to 8 exponent bits and 1 to 23 mantissa bits, "
                f"got {self.exponent_bits} and {self.mantissa_bits}"
            )
        check_choice("specials", self.specials, SPECIALS)
        if self.bias is None:
            object.__setattr__(self, "bias", 2 ** (self.exponent_bits - 1) - 1)
        # Beyond, the values of the format would leave float64, in which everything here is computed.
        if not -300 <= self._beta <= 300:
            raise ValueError(f"bias must lie between -300 and 300, got {self.bias}")
        if self.stored_bits is not None and self.stored_bits < self.width:
            raise ValueError(
                f"stored_bits must be at least the {self.width} bits of the fields, got {self.stored_bits}"
            )

    @property
    def width(self) -> int:
        """Bits of the pattern: 1 + e + m."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bits(self) -> int:
        """Bits that one number takes in memory."""
        return self.stored_bits or self.width

    @property
    def max(self) -> float:
        """The largest finite number."""
        return float(self.decode(torch.tensor(self._max_code)))

    @property
    def min(self) -> float:
        """The smallest finite number, −max."""
        return -self.max

    @property
    def smallest_normal(self) -> float:
        """2^(1−β)."""
        return 2.0 ** (1 - self._beta)

    @property
    def smallest_subnormal(self) -> float:
        """The smallest positive number, 2^(1−β−m)."""
        return 2.0 ** (1 - self._beta - self.mantissa_bits)

    @property
    def epsilon(self) -> float:
        """The distance from 1 to the next number, 2^−m: rounding a normal number errs by at most epsilon/2 of it."""
        return 2.0**-self.mantissa_bits

    @isolated
    def fields(self, codes: Integer[Tensor, "*shape"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sign, exponent and mantissa fields of bit patterns as whole numbers."""
        check_codes("codes", codes, 2**self.width - 1)
        codes = codes.long()
        m, e = self.mantissa_bits, self.exponent_bits
        return codes >> (e + m), (codes >> m) & (2**e - 1), codes & (2**m - 1)

    @isolated
    def decode(self, codes: Integer[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the numbers that bit patterns 0 … 2^width − 1 stand for, exact in float64.

        Raises:
            TypeError, ValueError: codes are not whole numbers, or outside the range.
        """
        sign, exponent, mantissa = self.fields(codes)
        # A subnormal has the exponent of E = 1 and no leading 1.
        fraction = mantissa + torch.where(exponent > 0, 2**self.mantissa_bits, 0)
        scale = exponent.clamp(min=1) - self._beta - self.mantissa_bits
        value = torch.ldexp(fraction.double(), scale.double())
        magnitude = codes.long() & (2 ** (self.width - 1) - 1)
        if self.specials == "inf_nan":
            value = torch.where(magnitude == self._max_code + 1, torch.inf, value)
        value = torch.where(magnitude > self._max_finite_or_inf, torch.nan, value)
        return torch.where(sign == 1, -value, value)

    @isolated
    def encode(self, x: Float[Tensor, "*shape"], *, saturate: bool = False) -> Integer[Tensor, "*shape"]:
        r"""Return the bit pattern of the nearest number, ties to the even mantissa.

        With $2^E \le |x| < 2^{E+1}$, or the smallest normal exponent if that is larger, the numbers around x are
        multiples of $2^{E-m}$. So $q = \mathrm{round}(|x| / 2^{E-m})$ gives the pattern $q + (E + \beta - 1)\,2^m$,
        for subnormals and for a carry into the next exponent, too.

        Args:
            x: any float dtype; rounded once, from its own value.
            saturate: numbers that round beyond the largest become ±max, infinities too. False: they become ±infinity,
                or NaN where the format has none. Torch's casts do the latter, but that to e4m3 saturates since
                version 2.12. The OCP specification of fp8 allows both.
        Returns:
            int64 patterns. The sign of zero is kept; every NaN becomes one pattern with the top mantissa bit set
            ("nan": all ones).
        Raises:
            TypeError: x is not floating point.
            ValueError: NaN, or overflow without ``saturate``, in a format with neither NaN nor infinity.
        Guarantee: decode(encode(decode(c))) = decode(c); no other number of the format is closer to x.
        """
        check_floating("x", x, float8=True)
        x = x.double()
        magnitude = x.abs()
        # NaN is replaced at the end; the clamp keeps everything below finite, and twice the largest still overflows.
        capped = magnitude.nan_to_num(nan=0.0).clamp(max=2 * self.max)
        exponent = self._exponent(capped)
        steps = torch.round(torch.ldexp(capped, (self.mantissa_bits - exponent).double())).long()
        code = steps + ((exponent + self._beta - 1) << self.mantissa_bits)
        over = (code > self._max_code) | torch.isinf(magnitude)
        lost = torch.isnan(x) if saturate else torch.isnan(x) | over
        if self.specials == "none" and bool(lost.any()):
            raise ValueError(
                f"{int(lost.sum())} value(s) are NaN or beyond {self.max}: the format has no pattern for them"
            )
        code = torch.where(over, self._max_code if saturate else self._overflow_code, code)
        code = torch.where(torch.isnan(x), self._nan_code, code)
        return code | (torch.signbit(x).long() << (self.width - 1))

    @isolated
    def round(self, x: Float[Tensor, "*shape"], *, saturate: bool = False) -> Float[Tensor, "*shape"]:
        """Return the nearest numbers of the format in float64: decode(encode(x))."""
        return self.decode(self.encode(x, saturate=saturate))

    @isolated
    def values(self) -> Float[Tensor, " n"]:
        """Return all finite numbers, ascending, float64; zero once. At most 16 bits wide.

        Raises:
            ValueError: a wider format (2^19 or more numbers).
        """
        if self.width > 16:
            raise ValueError(f"a list of all 2^{self.width} values is too long; widths up to 16 are listed")
        positive = self.decode(torch.arange(self._max_code + 1))
        return torch.cat([-positive[1:].flip(0), positive])

    @isolated
    def spacing(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the gap (ulp) between the numbers around x, 2^(E−m); below the smallest normal that of subnormals.

        NaN where |x| exceeds the largest number.
        """
        check_floating("x", x, float8=True)
        magnitude = x.double().abs()
        ulp = torch.exp2((self._exponent(magnitude) - self.mantissa_bits).double())
        return torch.where(magnitude <= self.max, ulp, torch.nan)

    @property
    def _beta(self) -> int:
        """β as a number, which it is once the format is made."""
        assert self.bias is not None
        return self.bias

    def _exponent(self, magnitude: Tensor) -> Tensor:
        """Return E with 2^E ≤ magnitude < 2^(E+1), at least that of the smallest normal number; int64."""
        exponent = torch.frexp(magnitude).exponent.long() - 1
        return torch.where(magnitude > 0, exponent.clamp(min=1 - self._beta), 1 - self._beta)

    @property
    def _max_code(self) -> int:
        """Pattern of the largest finite number; patterns of positive numbers are in the order of the numbers."""
        top = 2 ** (self.width - 1)  # one beyond the largest pattern without sign
        return {"inf_nan": top - 2**self.mantissa_bits - 1, "nan": top - 2, "none": top - 1}[self.specials]

    @property
    def _max_finite_or_inf(self) -> int:
        return self._max_code + (self.specials == "inf_nan")

    @property
    def _overflow_code(self) -> int:
        return self._max_code + (self.specials != "none")

    @property
    def _nan_code(self) -> int:
        return self._max_code + 1 + (2 ** (self.mantissa_bits - 1) if self.specials == "inf_nan" else 0)


NUMBER_FORMATS: dict[str, FloatFormat | IntFormat] = {
    "fp32": FloatFormat(8, 23),
    "tf32": FloatFormat(8, 10, stored_bits=32),
    "fp16": FloatFormat(5, 10),
    "bf16": FloatFormat(8, 7),
    "fp8_e4m3": FloatFormat(4, 3, specials="nan"),
    "fp8_e5m2": FloatFormat(5, 2),
    "int32": IntFormat(32),
    "int8": IntFormat(8),
    "int4": IntFormat(4),
    "int1": IntFormat(1),
}
