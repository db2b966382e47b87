import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.formats import NUMBER_FORMATS, FloatFormat

TORCH = {
    "fp16": (torch.float16, torch.int16),
    "bf16": (torch.bfloat16, torch.int16),
    "fp8_e4m3": (torch.float8_e4m3fn, torch.uint8),
    "fp8_e5m2": (torch.float8_e5m2, torch.uint8),
}
FP4 = FloatFormat(2, 1, specials="none")
SMALL = [
    FP4,
    FloatFormat(2, 1),
    FloatFormat(2, 3, specials="nan"),
    FloatFormat(3, 2, bias=5),
    FloatFormat(4, 1, bias=-2),
]
BITS32 = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50)


def from_torch(codes: torch.Tensor, name: str) -> torch.Tensor:
    """The numbers that torch's own dtype gives to the bit patterns, float64."""
    dtype, view = TORCH[name]
    width = NUMBER_FORMATS[name].width
    signed = codes - ((codes >= 2**15) * 2**16 if width == 16 else 0)
    return signed.to(view).view(dtype).double()


def to_torch(x: torch.Tensor, name: str) -> torch.Tensor:
    """The bit patterns that torch's cast gives."""
    dtype, view = TORCH[name]
    return x.to(dtype).view(view).long() & (2 ** NUMBER_FORMATS[name].width - 1)


def agree(ours: torch.Tensor, theirs: torch.Tensor, x: torch.Tensor, name: str) -> bool:
    """The patterns are equal; where e4m3 overflows, torch makes NaN before version 2.12 and saturates since."""
    if name != "fp8_e4m3":
        return torch.equal(ours, theirs)
    over = x.abs() > 464  # half way from 448 to the next step of 32
    saturated = NUMBER_FORMATS[name].encode(x, saturate=True)
    expected = torch.where(over & (theirs & 127 < 127), saturated, ours)
    return torch.equal(expected, theirs)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal numbers, NaN where NaN, and zeros of the same sign."""
    number = ~torch.isnan(a)
    return (
        torch.equal(torch.isnan(a), torch.isnan(b))
        and torch.equal(a[number], b[number])
        and torch.equal(torch.signbit(a[number]), torch.signbit(b[number]))
    )


def as_float32(bits) -> torch.Tensor:
    return torch.from_numpy(np.array(bits, dtype=np.uint32).view(np.float32).copy())


def hard_numbers(name: str, count: int = 20000) -> torch.Tensor:
    """Float32 numbers where rounding is hard: the format's numbers, their midpoints, one ulp beside, beyond."""
    fmt = NUMBER_FORMATS[name]
    values = fmt.values()
    middle = (values[1:] + values[:-1]) / 2
    middle = middle[torch.randperm(len(middle), generator=torch.Generator().manual_seed(0))[:count]]
    edge = torch.tensor([fmt.max, fmt.max + fmt.spacing(torch.tensor([fmt.max])).item() / 2], dtype=torch.float64)
    rest = torch.tensor([0.0, -0.0, math.inf, -math.inf, 1e-45, 3e38], dtype=torch.float64)
    x = torch.cat([middle, values[:: max(1, len(values) // count)], edge, -edge, rest]).float()
    return torch.cat([x, torch.nextafter(x, torch.tensor(math.inf)), torch.nextafter(x, torch.tensor(-math.inf))])


@pytest.mark.parametrize("name", TORCH)
def test_every_pattern_decodes_as_in_torch(name):
    codes = torch.arange(2 ** NUMBER_FORMATS[name].width)
    assert same(NUMBER_FORMATS[name].decode(codes), from_torch(codes, name))


@given(BITS32)
def test_random_patterns_of_fp32_decode_as_in_numpy(bits):
    assert same(NUMBER_FORMATS["fp32"].decode(torch.tensor(bits)), as_float32(bits).double())


@pytest.mark.parametrize("name", TORCH)
def test_encodes_as_torch_casts(name):
    x = hard_numbers(name)
    assert agree(NUMBER_FORMATS[name].encode(x), to_torch(x, name), x, name)


@pytest.mark.parametrize("name", TORCH)
@given(BITS32)
def test_encodes_any_float32_as_torch_casts(name, bits):
    x = as_float32(bits)
    ours, theirs = NUMBER_FORMATS[name].encode(x), to_torch(x, name)
    nan = torch.isnan(x)  # processors differ in which NaN they make
    assert agree(ours[~nan], theirs[~nan], x[~nan], name)
    assert torch.isnan(NUMBER_FORMATS[name].decode(ours[nan])).all()


@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=50))
def test_fp32_encodes_float64_as_numpy(numbers):
    with np.errstate(over="ignore", under="ignore"):
        theirs = np.array(numbers).astype(np.float32).view(np.uint32).astype(np.int64)
    assert NUMBER_FORMATS["fp32"].encode(torch.tensor(numbers, dtype=torch.float64)).tolist() == theirs.tolist()


@given(st.sampled_from([*TORCH, "tf32"]), st.floats(allow_nan=False, width=64))
def test_float64_is_rounded_once(name, x):
    # The literal definition with fractions: no other number of the format is nearer; on a tie the even pattern wins.
    fmt = NUMBER_FORMATS[name]
    code = int(fmt.encode(torch.tensor([x], dtype=torch.float64), saturate=True)) & (2 ** (fmt.width - 1) - 1)
    if math.isinf(x):
        assert code == fmt._max_code
        return
    near = torch.tensor([max(code - 1, 0), code, min(code + 1, fmt._max_code)])
    distance = [abs(Fraction(v) - Fraction(abs(x))) for v in fmt.decode(near).tolist()]
    assert distance[1] == min(distance)
    if distance.count(min(distance)) == 2 and len(set(near.tolist())) == 3:
        assert code % 2 == 0


@pytest.mark.parametrize("fmt", [*SMALL, *(NUMBER_FORMATS[n] for n in TORCH)], ids=str)
def test_decode_then_encode_returns_the_pattern(fmt):
    codes = torch.arange(2**fmt.width)
    numbers = fmt.decode(codes)
    kept = ~torch.isnan(numbers)
    assert torch.equal(fmt.encode(numbers[kept]), codes[kept])


@pytest.mark.parametrize("fmt", SMALL, ids=str)
def test_small_formats_against_the_definition(fmt):
    """Every pattern by the formula of IEEE 754, bit by bit with Python's numbers."""
    e, m = fmt.exponent_bits, fmt.mantissa_bits
    for code in range(2**fmt.width):
        bits = f"{code:0{fmt.width}b}"
        exponent, mantissa = int(bits[1 : 1 + e], 2), int(bits[1 + e :], 2)
        if exponent == 0:
            value = 2.0 ** (1 - fmt.bias) * mantissa / 2**m
        else:
            value = 2.0 ** (exponent - fmt.bias) * (1 + mantissa / 2**m)
        if fmt.specials == "inf_nan" and exponent == 2**e - 1:
            value = math.nan if mantissa else math.inf
        if fmt.specials == "nan" and "0" not in bits[1:]:
            value = math.nan
        expected = -value if bits[0] == "1" else value
        assert same(fmt.decode(torch.tensor([code])), torch.tensor([expected], dtype=torch.float64))
        assert [int(f) for f in fmt.fields(torch.tensor(code))] == [int(bits[0]), exponent, mantissa]


def test_published_properties():
    # Micikevicius et al. 2022, table 1.
    e4m3, e5m2 = NUMBER_FORMATS["fp8_e4m3"], NUMBER_FORMATS["fp8_e5m2"]
    assert (e4m3.bias, e4m3.max, e4m3.smallest_normal, e4m3.smallest_subnormal) == (7, 448, 2**-6, 2**-9)
    assert (e5m2.bias, e5m2.max, e5m2.smallest_normal, e5m2.smallest_subnormal) == (15, 57344, 2**-14, 2**-16)
    # OCP Microscaling specification: the numbers of fp4 e2m1.
    assert FP4.values()[7:].tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    for name, (dtype, _) in {**TORCH, "fp32": (torch.float32, None)}.items():
        info, fmt = torch.finfo(dtype), NUMBER_FORMATS[name]
        assert (fmt.max, fmt.min, fmt.smallest_normal, fmt.epsilon) == (info.max, info.min, info.tiny, info.eps)
        assert fmt.bits == info.bits
    assert (NUMBER_FORMATS["tf32"].width, NUMBER_FORMATS["tf32"].bits) == (19, 32)


@pytest.mark.parametrize("name", TORCH)
def test_values_are_all_finite_numbers_once(name):
    fmt = NUMBER_FORMATS[name]
    every = from_torch(torch.arange(2**fmt.width), name)
    assert torch.equal(fmt.values(), torch.unique(every[torch.isfinite(every)]))


@pytest.mark.parametrize("name", TORCH)
def test_spacing_is_the_gap_to_the_next_value(name):
    fmt = NUMBER_FORMATS[name]
    values = fmt.values()
    positive = values[values >= 0]
    assert torch.equal(fmt.spacing(positive[:-1]), positive.diff())
    assert torch.equal(fmt.spacing(-positive[:-1]), positive.diff())
    middle = (positive[1:] + positive[:-1]) / 2
    assert torch.equal(fmt.spacing(middle), positive.diff())
    assert torch.isnan(fmt.spacing(torch.tensor([2 * fmt.max, math.inf, math.nan]))).all()


def test_spacing_of_fp32_is_numpys():
    x = torch.cat(
        [torch.randn(1000, generator=torch.Generator().manual_seed(0)), torch.tensor([0.0, 1e-40, 1.0, 3e38])]
    )
    expected = np.abs(np.spacing(x.numpy())).astype(np.float64)
    assert torch.equal(NUMBER_FORMATS["fp32"].spacing(x), torch.from_numpy(expected))


@pytest.mark.parametrize("name", TORCH)
@given(seed=st.integers(0, 2**31), exponent=st.integers(-12, 12))
def test_rounding_errs_by_at_most_half_the_spacing(name, seed, exponent):
    fmt = NUMBER_FORMATS[name]
    x = torch.randn(50, generator=torch.Generator().manual_seed(seed)).double() * 2.0**exponent
    x = x[x.abs() <= fmt.max]
    assert ((x - fmt.round(x)).abs() <= fmt.spacing(x) / 2).all()


def test_overflow_infinities_and_nan():
    x = torch.tensor([500.0, -1e30, math.inf, -math.inf, math.nan])
    e4m3, e5m2 = NUMBER_FORMATS["fp8_e4m3"], NUMBER_FORMATS["fp8_e5m2"]
    assert torch.isnan(e4m3.round(x)).all()
    assert e4m3.round(x[:4], saturate=True).tolist() == [448, -448, 448, -448]
    assert torch.isnan(e4m3.round(x[4:], saturate=True)).all()
    assert e5m2.round(x[:4]).tolist() == [512, -math.inf, math.inf, -math.inf]
    assert e5m2.round(x[:4], saturate=True).tolist() == [512, -57344, 57344, -57344]
    # Half way between 448 and the 480 that is not there, the even mantissa is 448's.
    assert e4m3.round(torch.tensor([464.0, 464.01]))[0] == 448
    assert torch.isnan(e4m3.round(torch.tensor([464.01]))).all()
    assert FP4.round(torch.tensor([7.0, -9.0]), saturate=True).tolist() == [6, -6]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e5m2])
def test_dtypes_shapes_and_purity(dtype):
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = x.double().clone()
    codes = NUMBER_FORMATS["fp8_e4m3"].encode(x)
    assert codes.shape == x.shape and codes.dtype == torch.int64
    assert torch.equal(codes, NUMBER_FORMATS["fp8_e4m3"].encode(before)) and torch.equal(x.double(), before)
    assert NUMBER_FORMATS["bf16"].encode(torch.tensor(1.5)).shape == ()
    assert NUMBER_FORMATS["bf16"].encode(torch.zeros(0)).shape == (0,)


def test_bad_input(as_user):
    for e, m in ((1, 3), (9, 3), (4, 0), (4, 24)):
        with pytest.raises(ValueError, match="exponent bits"):
            FloatFormat(e, m)
    with pytest.raises(ValueError, match="specials must be"):
        FloatFormat(4, 3, specials="inf")
    with pytest.raises(ValueError, match="bias must"):
        FloatFormat(4, 3, bias=1000)
    with pytest.raises(ValueError, match="stored_bits"):
        FloatFormat(4, 3, stored_bits=7)
    fmt = NUMBER_FORMATS["fp8_e4m3"]
    for codes in (torch.tensor([256]), torch.tensor([-1])):
        with pytest.raises(ValueError, match="codes must lie"):
            fmt.decode(codes)
    with pytest.raises(TypeError, match="whole numbers"):
        fmt.decode(torch.tensor([1.0]))
    for method in (fmt.encode, fmt.spacing):
        with pytest.raises(TypeError, match="floating point"):
            method(torch.tensor([1]))
    for x in (math.nan, 7.0, math.inf):
        with pytest.raises(ValueError, match="no pattern"):
            FP4.encode(torch.tensor([x]))
    with pytest.raises(ValueError, match="NaN"):
        FP4.encode(torch.tensor([math.nan]), saturate=True)
    with pytest.raises(ValueError, match="too long"):
        NUMBER_FORMATS["fp32"].values()
