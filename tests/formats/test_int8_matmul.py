import pytest
import torch

from mlcomp.formats import absmax_int8
from mlcomp.formats.absmax_int8 import AbsmaxInt8
from mlcomp.formats.int8_matmul import int8_matmul


def quantized(rows, inp, seed=0):
    return absmax_int8(torch.randn(rows, inp, generator=torch.Generator().manual_seed(seed)), -1)


def test_is_the_product_of_the_dequantized_matrices():
    x, w = quantized(3, 50), quantized(5, 50, seed=1)
    want = x.dequantize().double() @ w.dequantize().double().T
    # Exact sum, then three roundings of 2⁻²⁴ against those of the dequantized entries.
    assert torch.allclose(int8_matmul(x, w).double(), want, rtol=1e-5, atol=1e-5)


def test_sum_is_exact():
    x, w = quantized(2, 1000), quantized(4, 1000, seed=1)
    one = torch.ones(2, 1), torch.ones(4, 1)
    got = int8_matmul(AbsmaxInt8(x.codes, one[0]), AbsmaxInt8(w.codes, one[1]))
    # Plain Python integers are the truth.
    for t, n in [(0, 0), (1, 3)]:
        assert int(got[t, n]) == sum(a * b for a, b in zip(x.codes[t].tolist(), w.codes[n].tolist(), strict=True))
    assert int8_matmul(x, w, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_bad_input(as_user):
    x = quantized(2, 8)
    with pytest.raises(ValueError, match="8 inputs a row and weight 9"):
        int8_matmul(x, quantized(2, 9))
    with pytest.raises(ValueError, match="one scale a row"):
        int8_matmul(x, absmax_int8(torch.ones(2, 8)))
    with pytest.raises(TypeError, match="must be int8"):
        int8_matmul(x, AbsmaxInt8(x.codes.int(), x.scale))
    wide = AbsmaxInt8(torch.ones(1, 140_000, dtype=torch.int8), torch.ones(1, 1))
    with pytest.raises(ValueError, match="exceed 32 bits"):
        int8_matmul(wide, wide)
