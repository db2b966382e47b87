import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.quant import MixedBits, quantize_mixed


def example(widths, group_size, ragged=0, seed=0):
    bits = torch.tensor(widths, dtype=torch.uint8)
    count = len(widths) * group_size - ragged
    weight = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    return weight, bits, quantize_mixed(weight, bits, group_size=group_size)


@given(
    st.lists(st.integers(1, 16), min_size=1, max_size=20), st.integers(1, 9), st.integers(0, 8), st.integers(0, 2**31)
)
def test_round_trip_of_every_width_and_the_size(widths, group_size, ragged, seed):
    ragged = min(ragged, group_size - 1)
    weight, bits, q = example(widths, group_size, ragged, seed)
    stream = q.pack()
    assert len(stream) == q.nbytes - 8
    again = MixedBits.unpack(stream, low=q.low, high=q.high, group_size=group_size, shape=(len(weight),))
    assert torch.equal(again.codes, q.codes) and torch.equal(again.bits, bits)
    assert torch.equal(again.dequantize(), q.dequantize())
    widths_of = bits.repeat_interleave(group_size)[: len(weight)].double()
    assert (q.codes >= 0).all() and (q.codes.double() <= 2**widths_of - 1).all()
    delta = (weight.max() - weight.min()).double() / (2**widths_of - 1)
    error = (q.dequantize() - weight).abs().double()
    # Half a step, and the float32 rounding of a value of the tensor's size.
    assert (error <= delta * 0.5000001 + 1e-6 * weight.abs().max()).all()
    # Honest: whole bytes of the sum of all bits, plus at most one byte for each part that is padded.
    least = (4 * len(widths) + float(widths_of.sum())) / 8
    assert least <= len(stream) <= least + 25


def test_groups_of_fifteen_bits_survive():
    """The public implementation packs the widths 1 to 14 only, and loses these."""
    weight, _, q = example([15, 3, 15, 16], 8)
    again = MixedBits.unpack(q.pack(), low=q.low, high=q.high, group_size=8, shape=(32,))
    assert int(again.codes[:8].max()) > 255 and torch.equal(again.codes, q.codes)
    assert (again.dequantize() - weight)[:8].abs().max() < 1e-4


def test_extremes_are_exact_and_constants_too():
    for bits in (1, 2, 8, 15, 16):
        weight = torch.tensor([-1.5, 0.3, 2.25])
        q = quantize_mixed(weight, torch.tensor([bits], dtype=torch.uint8), group_size=None)
        assert q.dequantize()[0] == -1.5 and q.dequantize()[2] == 2.25
        constant = quantize_mixed(torch.full((2, 3), 0.7), torch.tensor([bits], dtype=torch.uint8), group_size=None)
        assert torch.equal(constant.dequantize(), torch.full((2, 3), 0.7))


def test_equals_a_uniform_grid_of_that_width():
    weight, _, q = example([4, 4], 8)
    delta = (weight.max() - weight.min()) / 15
    assert torch.equal(q.codes, torch.round((weight - weight.min()) / delta).int())
    assert q.bits_per_weight == 8 * (1 + 8 + 8) / 16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_and_purity(dtype):
    weight = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = weight.clone()
    q = quantize_mixed(weight, torch.tensor([5, 9, 2, 12], dtype=torch.uint8), group_size=4)
    assert torch.equal(weight, before) and q.dequantize().shape == (3, 5)
    assert q.dequantize().dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_bad_input(as_user):
    bits = torch.tensor([4, 4], dtype=torch.uint8)
    with pytest.raises(ValueError, match="at least one entry"):
        quantize_mixed(torch.ones(0), bits, group_size=4)
    with pytest.raises(ValueError, match="weight holds"):
        quantize_mixed(torch.full((8,), torch.nan), bits, group_size=4)
    for bad in (bits[:1], bits.int(), bits * 0, bits + 13):
        with pytest.raises(ValueError, match="bits must be 2 uint8"):
            quantize_mixed(torch.ones(8), bad, group_size=4)
    q = quantize_mixed(torch.randn(8), bits, group_size=4)
    stream = torch.cat([q.pack(), torch.zeros(1, dtype=torch.uint8)])
    with pytest.raises(ValueError, match="ask for 5 bytes, and the stream has 6"):
        MixedBits.unpack(stream, low=q.low, high=q.high, group_size=4, shape=(8,))
