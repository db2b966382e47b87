import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.formats import FloatFormat, absmax_int8, pack
from mlcomp.quant import blockwise, data_type_levels
from mlcomp.quant.scalar.quantile import nf4_codebook

TYPES = st.sampled_from(["int", "float", "quantile", "nf4"])


def literal(weight, levels, size):
    """The definition, value by value: the block's largest magnitude in float16, then the nearest level."""
    flat = weight.flatten().tolist()
    out = []
    for start in range(0, len(flat), size):
        block = flat[start : start + size]
        scale = float(torch.tensor(max(abs(v) for v in block)).half())
        out += [scale * min(levels.tolist(), key=lambda level, v=v: abs(v / (scale or 1) - level)) for v in block]
    return torch.tensor(out).reshape(weight.shape)


@pytest.mark.parametrize("size", [1, 5, 7, 16, None])
@pytest.mark.parametrize(("kind", "bits"), [("int", 2), ("int", 4), ("float", 3), ("float", 6), ("nf4", 4)])
def test_equals_the_definition(kind, bits, size):
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(bits))
    got = blockwise(weight, bits=bits, block_size=size, data_type=kind)
    assert torch.allclose(got.dequantize(), literal(weight, data_type_levels(kind, bits), size or 35), atol=1e-6)


def test_quantile_uses_every_code_about_equally_often():
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    coded = blockwise(weight, bits=4, block_size=64, data_type="quantile")
    counts = torch.bincount(coded.codes.flatten().long(), minlength=16)
    # Nearest levels instead of quantiles as thresholds move the shares of the outer codes, most of all.
    assert int(counts.min()) > 0.7 * 256 and int(counts.max()) < 1.6 * 256
    assert len(coded.levels) == 16 and torch.equal(coded.levels, coded.levels.half().float())


def test_levels_against_formats_and_by_hand():
    assert data_type_levels("int", 2).tolist() == [-1, 0, 1]
    assert torch.allclose(data_type_levels("int", 8), torch.arange(-127, 128) / 127)
    assert data_type_levels("float", 3).tolist() == [-1, -0.5, -0.25, 0, 0.25, 0.5, 1]
    fp4 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]  # e2m1, as in the OCP microscaling standard
    assert torch.allclose(data_type_levels("float", 4)[7:], torch.tensor(fp4) / 6)
    for bits, e in ((4, 2), (5, 3), (6, 3), (7, 3), (8, 3)):
        values = FloatFormat(e, bits - 1 - e, specials="none").values()
        assert torch.allclose(data_type_levels("float", bits), (values / values.max()).float())
    assert torch.equal(data_type_levels("nf4", 4), nf4_codebook().levels.float())


def test_eight_bits_a_row_are_absmax_int8():
    weight = torch.randn(6, 10, generator=torch.Generator().manual_seed(3)).half().float()
    coded = blockwise(weight, bits=8, block_size=10)
    # The scale is max, exact in float16 here, against max/127 rounded in float32: two roundings.
    assert torch.allclose(coded.dequantize(), absmax_int8(weight, dim=-1).dequantize(), rtol=1e-6)


@given(TYPES, st.integers(3, 8), st.sampled_from([1, 3, 4, 12, 64, None]), st.integers(0, 2**31))
def test_error_bound_and_size(kind, bits, size, seed):
    bits = 4 if kind == "nf4" else bits
    weight = torch.randn(4, 12, generator=torch.Generator().manual_seed(seed))
    coded = blockwise(weight, bits=bits, block_size=size, data_type=kind)
    assert int(coded.codes.max()) < len(coded.levels) <= 2**bits
    largest = weight.reshape(-1, min(size or 48, 48)).abs().amax(1).repeat_interleave(min(size or 48, 48))
    edges = torch.cat([torch.tensor([-1.0]), coded.levels, torch.tensor([1.0])])
    gap = max(float(coded.levels.diff().max()) / 2, float(edges[1] - edges[0]), float(edges[-1] - edges[-2]))
    # float16 keeps 11 bits of the scale: 2^-11 of the largest; float32 rounding is far below.
    assert ((weight - coded.dequantize()).flatten().abs() <= largest * (gap + 2**-10)).all()
    stored = [pack(coded.codes, bits).nbytes, coded.scale.half().nbytes]
    if kind == "quantile":
        stored.append(coded.levels.half().nbytes)
    assert coded.nbytes == sum(stored) and coded.bits_per_weight == sum(stored) * 8 / 48


def test_a_shorter_last_block_is_a_block_of_its_own():
    weight = torch.tensor([[1.0, -0.5, 0.25, 100.0, 50.0]])
    coded = blockwise(weight, bits=4, block_size=3)
    assert coded.scale.tolist() == [1.0, 100.0] and coded.nbytes == 3 + 4
    assert torch.equal(coded.dequantize()[:, 3:], blockwise(weight[:, 3:], bits=4, block_size=3).dequantize())


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_quantile_levels_are_the_medians_of_equal_shares_of_the_weights(bits):
    weight = torch.randn(32, 48, generator=torch.Generator().manual_seed(bits)) ** 3
    coded = blockwise(weight, bits=bits, block_size=48, data_type="quantile")
    scaled = (weight / weight.abs().amax(1).half().float()[:, None]).flatten().double().sort().values
    middle = scaled.view(2**bits, -1)[:, [1536 // 2**bits // 2 - 1, 1536 // 2**bits // 2]]  # of an even number
    assert torch.equal(coded.levels, middle.mean(1).half().float())


@pytest.mark.parametrize("kind", ["int", "float", "quantile", "nf4"])
def test_zero_blocks_tiny_blocks_dtypes_and_purity(kind):
    weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    weight[1], weight[2] = 0, weight[2] * 1e-9
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        before = weight.to(dtype)
        given_weight = before.clone()
        got = blockwise(given_weight, bits=4, block_size=8, data_type=kind).dequantize()
        assert torch.equal(given_weight, before) and torch.isfinite(got).all() and got.dtype == torch.float32
        assert (got[1:] == 0).all()


def test_smaller_blocks_help_where_there_is_an_outlier():
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(1))
    weight[3, 5] = 60.0
    errors = [
        float((weight - blockwise(weight, bits=4, block_size=size).dequantize()).square().mean())
        for size in (None, 256, 64, 16)
    ]
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0] / 10


def test_bad_input(as_user):
    weight = torch.ones(2, 6)
    for bits in (1, 9, 4.0, True):
        with pytest.raises(ValueError, match="bits"):
            blockwise(weight, bits=bits)
    with pytest.raises(ValueError, match="'float' has 3 to 8 bits, got 2"):
        blockwise(weight, bits=2, data_type="float")
    with pytest.raises(ValueError, match="'nf4' has 4 to 4 bits"):
        blockwise(weight, bits=3, data_type="nf4")
    with pytest.raises(ValueError, match="data_type must be one of int, float"):
        blockwise(weight, bits=4, data_type="fp4")
    for size in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="block_size must be"):
            blockwise(weight, bits=4, block_size=size)
    with pytest.raises(ValueError, match="beyond float16"):
        blockwise(weight * 1e5, bits=4)
    with pytest.raises(ValueError, match="NaN or infinite"):
        blockwise(torch.tensor([[1.0, float("nan")]]), bits=4)
    with pytest.raises(ValueError, match="belong to a tensor"):
        data_type_levels("quantile", 4)
