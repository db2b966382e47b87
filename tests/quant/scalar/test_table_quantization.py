import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.formats import pack
from mlcomp.quant import MuLaw, companded_codebook, lloyd_max, nf4_codebook, table_quantize

TABLES = {"absmax": nf4_codebook(), "rms": lloyd_max("gaussian", 8), "none": lloyd_max("laplace", 5)}


def weight(seed=0, out=6, inp=24):
    return torch.randn(out, inp, generator=torch.Generator().manual_seed(seed))


@given(st.sampled_from(list(TABLES)), st.sampled_from([None, 1, 4, 24]), st.integers(0, 2**31))
def test_against_a_loop_over_blocks(scale, group_size, seed):
    w, book = weight(seed), TABLES[scale]
    width = group_size or 24
    q = table_quantize(w, book, group_size=group_size, scale=scale)
    for row in range(6):
        for start in range(0, 24, width):
            block = w[row, start : start + width]
            s = {"absmax": block.abs().max(), "rms": block.square().mean().sqrt(), "none": torch.tensor(1.0)}[scale]
            # The table's entries on both sides of the threshold, where rounding of the scale may decide.
            near = (block[:, None].double() / s - book.levels).abs().amin(1) * s
            got = (block - q.dequantize()[row, start : start + width]).abs()
            assert (got <= near + 1e-5).all()


@pytest.mark.parametrize("group_size", [None, 8])
def test_the_best_scale_against_a_fine_search(group_size):
    w = weight()
    w[1, 3] = 40.0
    book = lloyd_max("gaussian", 8)
    q = table_quantize(w, book, group_size=group_size, scale="mse")
    width = group_size or 24
    for row in range(6):
        for block in range(24 // width):
            part = w[row, block * width : (block + 1) * width].double()

            def error(s, part=part):
                return float((part[:, None] - s * book.levels).abs().amin(1).square().sum())

            peak = float(part.abs().max() / book.levels.abs().max())
            got, best = error(float(q.scale[row, block])), min(error(peak * k / 4000) for k in range(200, 4001))
            assert best <= got * (1 + 1e-5) and got <= 1.05 * best  # a hundred candidates against four thousand


def test_the_best_scale_is_no_worse_than_the_largest():
    w, book = weight(out=20), nf4_codebook()
    errors = [
        (w - table_quantize(w, book, group_size=8, scale=s).dequantize()).reshape(20, 3, 8).square().sum(2)
        for s in ("mse", "absmax")
    ]
    assert (errors[0] <= errors[1] * (1 + 1e-5)).all() and errors[0].sum() < 0.95 * errors[1].sum()


def test_zero_blocks_and_scaling():
    w = weight()
    w[2, 8:16] = 0
    companded = companded_codebook(MuLaw(), 16)
    for scale, book in (("absmax", companded), ("mse", companded), ("rms", lloyd_max("gaussian", 4))):
        q = table_quantize(w, book, group_size=8, scale=scale)
        assert (q.dequantize()[2, 8:16] == 0).all() and torch.isfinite(q.dequantize()).all()
        # Powers of two scale exactly, also where squares would overflow or vanish.
        for factor in (2.0**100, 2.0**-100):
            scaled = table_quantize(w * factor, book, group_size=8, scale=scale)
            assert torch.equal(scaled.codes, q.codes)
            assert torch.equal(scaled.dequantize(), q.dequantize() * factor)


@pytest.mark.parametrize("levels", [2, 5, 16, 256])
def test_size_is_that_of_the_packed_parts(levels):
    w, book = weight(), lloyd_max("gaussian", levels)
    q = table_quantize(w, book, group_size=6, scale="rms")
    packed = pack(q.codes, (levels - 1).bit_length())
    assert q.nbytes == packed.nbytes + q.scale.nbytes + book.levels.float().nbytes
    assert q.scale.shape == (6, 4) and q.bits_per_weight == q.nbytes * 8 / 144
    assert table_quantize(w, book, scale="none").scale.nbytes == 6 * 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_and_purity(dtype):
    w = weight().to(dtype)
    before = w.clone()
    q = table_quantize(w, nf4_codebook(), group_size=12)
    assert torch.equal(w, before)
    assert q.dequantize().dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(q.codes, table_quantize(w.double(), nf4_codebook(), group_size=12).codes)


def test_nf4_keeps_the_largest_and_zero():
    w = weight()
    w[:, 3] = 0
    back = table_quantize(w, nf4_codebook(), group_size=8).dequantize()
    assert (back[:, 3] == 0).all()
    peak = w.reshape(6, 3, 8).abs().amax(2)
    assert torch.allclose(back.reshape(6, 3, 8).abs().amax(2), peak)


def test_bad_input(as_user):
    book = nf4_codebook()
    with pytest.raises(ValueError, match="group_size must divide"):
        table_quantize(weight(), book, group_size=7)
    with pytest.raises(ValueError, match="scale must be"):
        table_quantize(weight(), book, scale="max")
    with pytest.raises(ValueError, match="NaN or infinite"):
        table_quantize(weight() * float("nan"), book)
    with pytest.raises(ValueError, match="non-empty matrix"):
        table_quantize(torch.ones(4), book)
