import pytest
import torch

from mlcomp.formats import pack
from mlcomp.formats.additive_codebook import AdditiveCodes, additive_decode, additive_matvec


def example(out=5, groups=6, books=2, entries=256, dim=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(entries, (out, groups, books), generator=g, dtype=torch.uint8)
    return AdditiveCodes(codes, torch.randn(books, entries, dim, generator=g), torch.rand(out, generator=g) + 0.5)


def test_decode_entry_by_entry():
    w = example()
    decoded = additive_decode(w)
    for n, j in [(0, 0), (3, 5), (4, 2)]:
        want = w.scale[n] * (w.codebooks[0, int(w.codes[n, j, 0])] + w.codebooks[1, int(w.codes[n, j, 1])])
        assert torch.allclose(decoded[n, 8 * j : 8 * j + 8], want, rtol=1e-6)


def test_size_at_two_bits():
    w = example(out=64, groups=512, dim=8)
    assert w.nbytes == 64 * 512 * 2 + 2 * 256 * 8 * 4 + 64 * 4
    assert 8 * w.codes.numel() / (64 * w.inp) == 2


@pytest.mark.parametrize(("entries", "code_bits"), [(1, 0), (2, 1), (3, 2), (16, 4), (17, 5), (64, 6), (256, 8)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_size_counts_packed_codes_codebooks_and_scales(entries, code_bits, dtype):
    w = example(out=7, groups=5, books=3, entries=entries, dim=4)
    w = AdditiveCodes(w.codes, w.codebooks.to(dtype), w.scale.to(dtype))
    codes = len(pack(w.codes, code_bits)) if code_bits else 0
    parts = codes + (3 * entries * 4 + 7) * (2 if dtype == torch.float16 else 4)
    assert w.nbytes == parts
    assert w.bits_per_weight == parts * 8 / (7 * 20)


def test_dequantize_is_the_decoding():
    w = example()
    assert torch.equal(w.dequantize(), additive_decode(w))


@pytest.mark.parametrize("options", [{}, {"books": 1, "entries": 16, "dim": 3}, {"groups": 1, "books": 3}])
def test_matvec_is_the_product_with_the_decoded_weight(options):
    w = example(**options)
    x = torch.randn(w.inp, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    want = additive_decode(w).double() @ x
    assert torch.allclose(additive_matvec(x, w), want, rtol=0, atol=1e-5)  # float32 rounding of the decoded weight


def test_bad_input(as_user):
    w = example()
    with pytest.raises(ValueError, match=r"x must be \(48,\)"):
        additive_matvec(torch.zeros(47), w)
    with pytest.raises(ValueError, match="one a row"):
        AdditiveCodes(w.codes, w.codebooks, w.scale[:2])
    with pytest.raises(ValueError, match="codebooks must be"):
        AdditiveCodes(w.codes, w.codebooks[:1], w.scale)
    with pytest.raises(TypeError, match="uint8"):
        AdditiveCodes(w.codes.int(), w.codebooks, w.scale)
    with pytest.raises(IndexError):
        additive_decode(AdditiveCodes(w.codes, w.codebooks[:, :4], w.scale))
