import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.formats import absmax_int8


def test_lecture_4_example():
    codes, scale = absmax_int8(torch.tensor([0.5, 20, -0.0001, -0.01, -0.1]))
    assert codes.tolist() == [3, 127, 0, 0, -1] and codes.dtype == torch.int8
    assert scale.item() == pytest.approx(20 / 127) and scale.shape == ()


def test_exact_ties_go_to_the_even_code():
    # The maximum 127 makes the scale exactly 1.
    codes, scale = absmax_int8(torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]))
    assert scale.item() == 1
    assert codes.tolist() == [127, 0, 2, 2, 0, -2, -2]


@given(st.integers(1, 6), st.integers(1, 9), st.integers(-30, 30), st.integers(0, 2**31))
def test_error_is_at_most_half_a_step(rows, n, exponent, seed):
    x = torch.randn(rows, n, generator=torch.Generator().manual_seed(seed)) * 10.0**exponent
    for dim in (None, 0, -1, (0, 1)):
        result = absmax_int8(x, dim)
        # A relative slack of two float32 units: the quotient and the scale are rounded.
        slack = 127 * 2**-23
        assert ((x - result.dequantize()).abs() <= result.scale * (0.5 + slack)).all()
        largest = result.codes.abs().amax() if dim is None else result.codes.abs().amax(dim)
        assert (largest == 127).all()


def test_one_scale_for_each_row_equals_row_by_row():
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    x[1] = 0
    codes, scale = absmax_int8(x, dim=-1)
    assert scale.shape == (3, 1) and scale[1] == 1 and codes[1].tolist() == [0] * 5
    for row in (0, 2):
        one = absmax_int8(x[row])
        assert torch.equal(one.codes, codes[row]) and one.scale == scale[row]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_and_extremes(dtype):
    big = torch.finfo(dtype).max
    result = absmax_int8(torch.tensor([big, -big / 4, 0], dtype=dtype))
    assert result.codes.tolist() == [127, -32, 0]
    assert result.scale.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    result = absmax_int8(torch.tensor([tiny, 0, -tiny], dtype=dtype))
    assert torch.isfinite(result.dequantize()).all() and result.codes[0] == -result.codes[2] > 0
    # A scale may not underflow to 0. Of 127 steps of a subnormal number few digits are left; one step is exact.
    assert float(result.dequantize()[0]) == pytest.approx(tiny, rel=1e-3, abs=0)


def test_bad_input(as_user):
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="NaN or infinite"):
            absmax_int8(torch.tensor([1.0, bad]))
    with pytest.raises(ValueError, match="at least one entry"):
        absmax_int8(torch.zeros(0, 3))
    with pytest.raises(TypeError, match="floating point"):
        absmax_int8(torch.tensor([1, 2]))
