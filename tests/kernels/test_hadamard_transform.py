import pytest
import torch

from mlcomp.kernels.hadamard_transform import hadamard_transform
from mlcomp.kernels.launch import INTERPRETED
from mlcomp.quant.post_training.hadamard import hadamard_transform as reference


def error(x, **options):
    got, want = hadamard_transform(x, **options), reference(x.double(), **options)
    assert got.shape == x.shape and got.dtype == x.dtype
    return float((got.double() - want).norm() / want.norm())


@pytest.mark.parametrize("n", [16, 64, 128, 256, 512, 4096, 576, 12 * 16, 28 * 512])
@pytest.mark.parametrize("rows", [1, 5])
def test_float32(random, n, rows):
    assert error(random(rows, n)) < 1e-6
    assert error(random(rows, n), transpose=True) < 1e-6


@pytest.mark.parametrize("dtype", [
    torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.skipif(INTERPRETED, reason="needs a GPU"))
])  # fmt: skip
@pytest.mark.parametrize("n", [64, 512, 28 * 512, 20 * 256])
def test_16_bits_round_once(random, dtype, n):
    x = random(3, n, dtype=dtype)
    rounded = reference(x.float()).to(dtype).double()
    want = reference(x.double())
    # The reference, rounded once, is the best that the dtype allows; 1 % for values that fall the other way.
    assert error(x) <= 1.01 * float((rounded - want).norm() / want.norm())


def test_whole_numbers_are_exact(device):
    # 4096 small whole numbers: all sums fit float32, and √4096 is a power of two.
    x = (torch.arange(2 * 4096, device=device).reshape(2, 4096) * 37 % 17 - 8).float()
    assert torch.equal(hadamard_transform(x), reference(x))


def test_undoes_itself_and_keeps_norms(random):
    x = random(2, 3, 28 * 16)
    y = hadamard_transform(x)
    assert torch.allclose(y.norm(dim=-1), x.norm(dim=-1), rtol=1e-5)
    assert torch.allclose(hadamard_transform(y, transpose=True), x, rtol=0, atol=1e-5)


def test_non_contiguous(random):
    assert error(random(64, 6).T) < 1e-6
    assert error(random(4, 128)[::2, ::2]) < 1e-6


def test_bad_input(random, as_user):
    for n in (8, 24, 65536):
        with pytest.raises(ValueError, match="2\\^k ≥ 16"):
            hadamard_transform(random(1, n))
    with pytest.raises(ValueError, match="no Hadamard matrix of order 172"):
        hadamard_transform(random(1, 172))
    with pytest.raises(TypeError, match="float64"):
        hadamard_transform(random(1, 16).double())
    with pytest.raises(ValueError, match="at least one entry"):
        hadamard_transform(random(0, 16))
