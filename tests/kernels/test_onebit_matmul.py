import pytest
import torch

from mlcomp.formats.onebit_matmul import onebit_matmul as reference
from mlcomp.formats.xnor_matmul import pack_signs
from mlcomp.kernels.launch import INTERPRETED
from mlcomp.kernels.onebit_matmul import onebit_matmul

# Root mean square of the error over that of the result: a float32 sum in another order, or one rounding.
BOUND = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 5e-3}
DTYPES = [
    torch.float32,
    torch.float16,
    pytest.param(torch.bfloat16, marks=pytest.mark.skipif(INTERPRETED, reason="stores of bfloat16 truncate there")),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize(("out", "inp"), [(1, 1), (67, 31), (130, 64), (9, 401), (70, 4096), (3, 5000)])
def test_equals_the_reference(random, tokens, out, inp, dtype):
    x, w = random(tokens, inp, dtype=dtype), random(out, inp, seed=1)
    rows, columns = random(out, seed=2).abs(), random(inp, seed=3).abs().half()
    y = onebit_matmul(x, pack_signs(w), rows, columns)
    dense = rows.double()[:, None] * columns.double() * torch.where(w >= 0, 1.0, -1.0)
    want = x.double() @ dense.T
    assert y.dtype == dtype and y.shape == want.shape
    assert (y.double() - want).norm() <= BOUND[dtype] * want.norm()
    same = reference(x, pack_signs(w), rows, columns)
    assert (y.double() - same.double()).norm() <= 2 * BOUND[dtype] * want.norm()


def test_whole_numbers_are_exact_and_every_bit_has_its_column(device):
    x = torch.arange(1.0, 71.0, device=device)[None]
    signs = torch.eye(70, device=device) * 2 - 1
    one = torch.ones(70, device=device)
    y = onebit_matmul(x, pack_signs(signs), one, one)
    assert torch.equal(y, 2 * x - x.sum())


def test_tiles_as_on_a_gpu(random, monkeypatch):
    monkeypatch.setattr("mlcomp.kernels.onebit_matmul.INTERPRETED", False)
    x, rows, columns = random(2, 300), random(6, seed=2), random(300, seed=3)
    signs = pack_signs(random(6, 300, seed=1))
    want = reference(x, signs, rows, columns)
    torch.testing.assert_close(onebit_matmul(x, signs, rows, columns), want, rtol=1e-5, atol=1e-4)


def test_no_tokens_and_strides(random):
    signs, one = pack_signs(random(8, 40)), random(8).abs()
    assert onebit_matmul(random(0, 40), signs, one, random(40).abs()).shape == (0, 8)
    x, columns = random(40, 2).T, random(40).abs()
    torch.testing.assert_close(onebit_matmul(x, signs, one, columns), reference(x, signs, one, columns))


def test_bad_input(random, as_user):
    signs, rows, columns = pack_signs(random(8, 40)), random(8), random(40)
    x = random(1, 40)
    for wrong in ((random(1, 41), rows, columns), (x, rows[:7], columns), (x, rows, rows)):
        with pytest.raises(ValueError, match=r"x must be|rows|columns"):
            onebit_matmul(wrong[0], signs, *wrong[1:])
    with pytest.raises(TypeError, match="float64"):
        onebit_matmul(random(1, 40).double(), signs, rows, columns)
    with pytest.raises(TypeError, match="pack_signs"):
        onebit_matmul(random(1, 40), random(8, 40), rows, columns)
