import pytest
import torch

from mlcomp.formats.additive_codebook import AdditiveCodes
from mlcomp.formats.additive_codebook import additive_decode as reference
from mlcomp.kernels.additive_decode import additive_decode
from mlcomp.kernels.launch import INTERPRETED


def example(random, device, out, groups, books, dim, dtype=torch.float32, entries=256):
    codes = (random(out, groups, books).abs() * 1e4).long() % entries
    return AdditiveCodes(codes.to(torch.uint8), random(books, entries, dim, seed=1).to(dtype), random(out, seed=2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("out", "groups", "books", "dim"), [(1, 1, 1, 1), (7, 13, 2, 8), (3, 700, 1, 8), (5, 9, 3, 5)]
)
def test_equals_the_reference(random, device, out, groups, books, dim, dtype):
    weight = example(random, device, out, groups, books, dim, dtype)
    got, want = additive_decode(weight), reference(weight)
    assert got.dtype == dtype and got.shape == want.shape
    if dtype == torch.bfloat16 and INTERPRETED:  # which truncates where a GPU rounds
        assert ((got - want).abs() <= 2**-7 * want.abs()).all()
    else:
        assert torch.equal(got, want)


def test_non_contiguous(random, device):
    weight = example(random, device, 8, 6, 2, 8)
    weight = AdditiveCodes(weight.codes[::2, ::3], weight.codebooks[:, :, ::2], weight.scale[::2])
    assert torch.equal(additive_decode(weight), reference(weight))


def test_bad_input(random, device, as_user):
    with pytest.raises(ValueError, match="256 entries"):
        additive_decode(example(random, device, 2, 2, 1, 4, entries=16))
    with pytest.raises(TypeError, match="float64"):
        additive_decode(example(random, device, 2, 2, 1, 4, dtype=torch.float64))
