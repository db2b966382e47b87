import pytest
import torch

from mlcomp.formats.absmax_int8 import AbsmaxInt8
from mlcomp.formats.absmax_int8 import absmax_int8 as quantize
from mlcomp.formats.int8_matmul import int8_matmul as reference
from mlcomp.kernels.int8_matmul import int8_matmul


@pytest.mark.parametrize(("tokens", "out", "inp"), [(1, 1, 1), (1, 67, 401), (17, 130, 256), (71, 131, 300)])
def test_equals_the_reference(random, tokens, out, inp):
    x, weight = quantize(random(tokens, inp), -1), quantize(random(out, inp, seed=1), -1)
    assert torch.equal(int8_matmul(x, weight), reference(x, weight))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounds_the_result_once(random, dtype):
    x, weight = quantize(random(5, 64), -1), quantize(random(9, 64, seed=1), -1)
    got, want = int8_matmul(x, weight, dtype=dtype), reference(x, weight)
    assert got.dtype == dtype
    # One rounding; twice half a unit, since the interpreter truncates float32 to bfloat16.
    assert ((got.float() - want).abs() <= torch.finfo(dtype).eps * want.abs()).all()


def test_largest_sums(device):
    ones = torch.full((2, 40_000), 127, dtype=torch.int8, device=device)
    x = AbsmaxInt8(ones, torch.ones(2, 1, device=device))
    assert int8_matmul(x, AbsmaxInt8(-ones, x.scale)).tolist() == [[-(127.0**2) * 40_000] * 2] * 2


def test_non_contiguous(random):
    x, weight = quantize(random(6, 40), -1), quantize(random(8, 20), -1)
    x = AbsmaxInt8(x.codes[::2, ::2], x.scale[::2])
    weight = AbsmaxInt8(weight.codes.T.contiguous().T, weight.scale)
    assert torch.equal(int8_matmul(x, weight), reference(x, weight))


def test_bad_input(random, as_user):
    x = quantize(random(2, 8), -1)
    with pytest.raises(ValueError, match="8 inputs a row and weight 9"):
        int8_matmul(x, quantize(random(2, 9), -1))
    with pytest.raises(TypeError, match=r"scale.*float64"):
        int8_matmul(x, AbsmaxInt8(x.codes, x.scale.double()))
    with pytest.raises(TypeError, match=r"dtype must be.*int8"):
        int8_matmul(x, x, dtype=torch.int8)
