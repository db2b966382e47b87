import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.formats import NUMBER_FORMATS, IntFormat


@pytest.mark.parametrize(
    ("bits", "signed", "dtype"), [(8, True, np.int8), (8, False, np.uint8), (16, True, np.int16)]
)
def test_every_pattern_is_numpys(bits, signed, dtype):
    fmt = IntFormat(bits, signed=signed)
    codes = np.arange(2**bits)
    expected = codes.astype(f"uint{bits}").view(dtype).astype(np.float64)
    assert fmt.decode(torch.from_numpy(codes)).tolist() == expected.tolist()
    assert fmt.encode(torch.from_numpy(expected)).tolist() == codes.tolist()
    assert fmt.values().tolist() == sorted(expected.tolist())
    assert (fmt.min, fmt.max) == (np.iinfo(dtype).min, np.iinfo(dtype).max)


@pytest.mark.parametrize(
    ("name", "values"), [("int4", list(range(-8, 8))), ("int1", [-1, 0]), ("int8", list(range(-128, 128)))]
)
def test_ranges_of_the_lecture(name, values):
    # qmin = −2^(b−1), qmax = 2^(b−1) − 1.
    assert NUMBER_FORMATS[name].values().tolist() == values


@given(st.integers(1, 32), st.booleans(), st.lists(st.floats(-(2.0**33), 2.0**33), min_size=1))
def test_rounds_to_the_nearest_even_inside_the_range(bits, signed, numbers):
    fmt = IntFormat(bits, signed=signed)
    rounded = fmt.round(torch.tensor(numbers, dtype=torch.float64)).tolist()
    assert rounded == [min(max(round(x), fmt.min), fmt.max) for x in numbers]


def test_by_hand():
    fmt = IntFormat(4)
    assert fmt.encode(torch.tensor([-1.0, -8.0, 7.0, 0.5, 1.5, -0.5])).tolist() == [15, 8, 7, 0, 2, 0]
    assert fmt.round(torch.tensor([100.0, -math.inf, math.inf])).tolist() == [7, -8, 7]
    assert IntFormat(1, signed=False).values().tolist() == [0, 1]
    assert fmt.spacing(torch.tensor([7.0, -8.0])).tolist() == [1, 1]
    assert torch.isnan(fmt.spacing(torch.tensor([8.0, math.nan]))).all()


def test_bad_input(as_user):
    for bits in (0, 33, 4.0, True):
        with pytest.raises(ValueError, match="from 1 to 32"):
            IntFormat(bits)
    fmt = IntFormat(4)
    with pytest.raises(ValueError, match="1 NaN"):
        fmt.encode(torch.tensor([1.0, math.nan]))
    for x in (7.6, -9.0, math.inf):
        with pytest.raises(ValueError, match="outside"):
            fmt.encode(torch.tensor([x]), saturate=False)
    assert fmt.encode(torch.tensor([7.4]), saturate=False).tolist() == [7]
    for codes in (torch.tensor([16]), torch.tensor([-1])):
        with pytest.raises(ValueError, match="codes must lie"):
            fmt.decode(codes)
    for codes in (torch.tensor([1.0]), torch.tensor([True])):
        with pytest.raises(TypeError, match="whole numbers"):
            fmt.decode(codes)
    with pytest.raises(TypeError, match="floating point"):
        fmt.encode(torch.tensor([1]))
    with pytest.raises(ValueError, match="too long"):
        IntFormat(32).values()
