import pytest
import torch

from mlcomp.formats.additive_codebook import AdditiveCodes
from mlcomp.formats.additive_codebook import additive_matvec as reference
from mlcomp.kernels.additive_matvec import additive_matvec
from tests.kernels.test_additive_decode import example


@pytest.mark.parametrize(
    ("out", "groups", "books", "dim"), [(1, 1, 1, 1), (37, 13, 2, 8), (5, 700, 1, 8), (1030, 3, 3, 5)]
)
def test_equals_the_reference(random, device, out, groups, books, dim):
    weight = example(random, device, out, groups, books, dim)
    x = random(weight.inp, seed=3)
    got, want = additive_matvec(x, weight), reference(x.double(), weight)
    assert got.dtype == torch.float32 and got.shape == want.shape
    assert (got.double() - want).norm() <= 1e-5 * want.norm() + 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bits(random, device, dtype):
    weight = example(random, device, 40, 30, 2, 8, dtype)
    x = random(weight.inp, dtype=dtype, seed=3)
    got, want = additive_matvec(x, weight), reference(x.double(), weight)
    # One rounding of the result; the interpreter cuts where a GPU rounds.
    assert got.dtype == dtype and (got.double() - want).norm() <= torch.finfo(dtype).eps * want.norm()


def test_same_every_time_and_non_contiguous(random, device):
    weight = example(random, device, 64, 100, 2, 4)
    weight = AdditiveCodes(weight.codes[::3, ::2], weight.codebooks, weight.scale[::3])
    x = random(2 * weight.inp, seed=3)[::2]
    got = additive_matvec(x, weight)
    assert torch.equal(got, additive_matvec(x, weight))
    assert torch.allclose(got, reference(x, weight), rtol=0, atol=1e-4)  # 200 float32 terms of size 2


def test_bad_input(random, device, as_user):
    weight = example(random, device, 2, 2, 1, 4)
    with pytest.raises(ValueError, match=r"x must be \(8,\)"):
        additive_matvec(random(9), weight)
    with pytest.raises(TypeError, match="float64"):
        additive_matvec(random(8).double(), weight)
