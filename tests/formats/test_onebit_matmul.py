"""The product with signs and two vectors against the dense weight that they stand for."""

import pytest
import torch

from mlcomp.formats import onebit_matmul, pack_signs
from mlcomp.quant import onebit_decompose


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_it_is_the_product_with_the_decoded_weight(dtype):
    w = torch.randn(7, 13)
    made = onebit_decompose(w, dtype=torch.float32)
    x = torch.randn(3, 13).to(dtype)
    y = onebit_matmul(x, pack_signs(w), made.rows, made.columns)
    want = x.double() @ made.dequantize().double().T
    assert y.dtype == dtype
    # A rounding of 2⁻¹¹ in float16; the decoded weight is rounded to float32 in any case.
    torch.testing.assert_close(y.double(), want, rtol=1e-3 if dtype == torch.float16 else 1e-5, atol=1e-3)


def test_a_sum_with_signs_needs_only_the_positive_ones():
    s, x = torch.randn(5, 30), torch.randn(1, 30, dtype=torch.float64)
    one = torch.ones(30)
    y = onebit_matmul(x, pack_signs(s), torch.ones(5), one)
    torch.testing.assert_close(y[0], 2 * ((s >= 0).double() @ x[0]) - x.sum())


def test_bad_input(as_user):
    signs = pack_signs(torch.randn(5, 30))
    x, rows, columns = torch.randn(2, 30), torch.ones(5), torch.ones(30)
    for wrong in (
        (x[:, :3], rows, columns),
        (x, columns, columns),
        (x, rows, rows),
        (x * float("nan"), rows, columns),
    ):
        with pytest.raises(ValueError, match=r"x|rows|columns"):
            onebit_matmul(wrong[0], signs, *wrong[1:])
    with pytest.raises(TypeError, match="pack_signs"):
        onebit_matmul(x, torch.ones(5, 30), rows, columns)
