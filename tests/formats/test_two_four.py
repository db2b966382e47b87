import itertools

import pytest
import torch
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from mlcomp.formats import TwoFour, sparse_nbytes, two_four_matmul, unpack
from mlcomp.prune import magnitude
from tests.formats.test_bitmask import DTYPES


def two_four(out=32, inp=64, dtype=torch.float32):
    weight = torch.randn(out, inp, generator=torch.Generator().manual_seed(0)).to(dtype)
    return magnitude(weight, pattern=(2, 4))


def fewer(weight):
    """Blocks with one non-zero, and with none, at every place."""
    return weight * (torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(32, 64), (1, 4), (3, 12), (5, 20)])
def test_the_round_trip_is_exact_and_the_size_the_formula(shape, dtype):
    for weight in (two_four(*shape, dtype), fewer(two_four(*shape, dtype)), torch.zeros(shape, dtype=dtype)):
        before = weight.clone()
        stored = TwoFour.from_dense(weight)
        back = stored.dequantize()
        assert back.dtype == dtype and torch.equal(back, weight) and torch.equal(weight, before)
        bits = 8 * weight.element_size()
        size = sparse_nbytes(shape, int(weight.count_nonzero()), format="n:m", value_bits=bits, pattern=(2, 4))
        assert stored.nbytes == size and stored.bits_per_weight == 8 * size / weight.numel()
        assert stored.shape == shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8])
def test_values_are_those_of_torchs_own_conversion(dtype):
    # Full blocks: how torch fills the others is its own affair. Its metadata is in the order of the hardware.
    weight = two_four(64, 128)
    if dtype == torch.int8:
        weight = (weight * 20).sign() * (weight * 20).abs().ceil()  # whole numbers, and no new zeros
    values, metadata = sparse_semi_structured_from_dense_cutlass(weight.to(dtype))
    stored = TwoFour.from_dense(weight.to(torch.float32 if dtype == torch.int8 else dtype))
    assert torch.equal(stored.values.to(dtype), values)
    assert stored.metadata.nbytes == metadata.nbytes
    back = sparse_semi_structured_to_dense_cutlass(values, metadata)
    assert torch.equal(stored.dequantize().to(dtype), back)
    sparser = fewer(weight).to(dtype)
    back = sparse_semi_structured_to_dense_cutlass(*sparse_semi_structured_from_dense_cutlass(sparser))
    stored = TwoFour.from_dense(sparser.float())
    assert torch.equal(stored.dequantize().to(dtype), back)


def test_every_block_there_is():
    """All 11 blocks with at most two non-zeros: the places are the definition's."""
    for kept in itertools.chain.from_iterable(itertools.combinations(range(4), k) for k in range(3)):
        block = torch.tensor([[float(place + 1) if place in kept else 0.0 for place in range(4)]])
        stored = TwoFour.from_dense(block)
        free = [place for place in range(4) if place not in kept]
        places = sorted([*kept, *free[: 2 - len(kept)]])
        assert unpack(stored.metadata, 2, 2).tolist() == places
        assert stored.values[0].tolist() == [float(block[0, place]) for place in places]
        assert int(stored.metadata[0]) == places[0] + 4 * places[1]  # a nibble, the first place in its lower bits


def test_half_the_values_and_an_eighth_of_dense_in_16_bits():
    stored = TwoFour.from_dense(two_four(64, 64, torch.float16))
    assert (stored.values.nbytes, stored.metadata.nbytes) == (64 * 64, 64 * 64 // 8)
    assert stored.nbytes * 16 == 9 * 64 * 64 * 2


@pytest.mark.parametrize("shape", [(32, 64), (3, 12), (1, 4)])
def test_the_product_is_that_of_the_decoded_weight(shape):
    weight = fewer(two_four(*shape, torch.float64))
    x = torch.randn(5, shape[1], generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    # Sums of up to 32 products in float64, in another order.
    torch.testing.assert_close(two_four_matmul(x, TwoFour.from_dense(weight)), x @ weight.T, rtol=0, atol=1e-13)


def test_the_product_keeps_the_dtype_of_x():
    stored = TwoFour.from_dense(two_four(dtype=torch.bfloat16))
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(3)).to(torch.bfloat16)
    y = two_four_matmul(x, stored)
    want = x.double() @ stored.dequantize().double().T
    # One rounding to 8 bits of a sum in float32.
    torch.testing.assert_close(y.double(), want, rtol=2**-8, atol=1e-5)
    assert y.dtype == torch.bfloat16 and two_four_matmul(x[:0], stored).shape == (0, 32)


def test_bad_input(as_user):
    weight = two_four()
    stored = TwoFour.from_dense(weight)
    dense = weight.clone()
    dense[3, 8:12] = torch.tensor([1.0, 1.0, 0.0, 1.0])
    with pytest.raises(ValueError, match="1 of 512 blocks have more, the first in row 3 at input 8"):
        TwoFour.from_dense(dense)
    with pytest.raises(ValueError, match="multiple of 4 inputs, got 62"):
        TwoFour.from_dense(weight[:, :62])
    with pytest.raises(ValueError, match="at most 2 non-zeros"):
        TwoFour.from_dense(weight.T)
    with pytest.raises(TypeError, match="floating point"):
        TwoFour.from_dense(weight.long())
    with pytest.raises(ValueError, match="NaN or infinite"):
        TwoFour.from_dense(weight / 0)
    for x in (torch.ones(2, 63), torch.ones(64)):
        with pytest.raises(ValueError, match=r"x must be \(tokens, 64\)"):
            two_four_matmul(x, stored)
    with pytest.raises(ValueError, match="the result holds"):
        two_four_matmul(torch.full((1, 64), 6e4, dtype=torch.float16), stored)
    with pytest.raises(ValueError, match="inp/2 even"):
        TwoFour(stored.values[:, :31], stored.metadata)
    with pytest.raises(ValueError, match=r"metadata must be uint8 \(256,\)"):
        TwoFour(stored.values, stored.metadata[1:])
    with pytest.raises(ValueError, match="two places of each block, in ascending order"):
        TwoFour(stored.values, torch.zeros_like(stored.metadata))
