import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.formats import pack, packed_nbytes, unpack

SHAPES = st.lists(st.integers(0, 9), min_size=0, max_size=3).map(tuple)


def literal_stream(codes: list[int], bits: int) -> list[int]:
    """The documented layout, one bit at a time."""
    stream = [(code >> k) & 1 for code in codes for k in range(bits)]
    stream += [0] * (-len(stream) % 8)
    return [sum(bit << k for k, bit in enumerate(stream[i : i + 8])) for i in range(0, len(stream), 8)]


@given(SHAPES, st.integers(1, 8), st.integers(0, 2**31))
def test_round_trip_and_documented_layout(shape, bits, seed):
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, shape, generator=g).to(torch.uint8)
    before = codes.clone()
    packed = pack(codes, bits)
    assert packed.tolist() == literal_stream(codes.flatten().tolist(), bits)
    assert packed.dtype == torch.uint8 and packed.numel() == packed_nbytes(math.prod(shape), bits)
    back = unpack(packed, bits, shape)
    assert back.shape == shape and torch.equal(back, codes) and torch.equal(codes, before)


@pytest.mark.parametrize("bits", range(1, 9))
def test_size_is_dense(bits):
    assert pack(torch.zeros(8000, dtype=torch.uint8), bits).numel() == 1000 * bits
    assert packed_nbytes(3, bits) == math.ceil(3 * bits / 8)


def test_every_code_of_every_width_survives():
    for bits in range(1, 9):
        codes = torch.arange(2**bits, dtype=torch.uint8)
        assert torch.equal(unpack(pack(codes, bits), bits, 2**bits), codes)


def test_one_bit_is_numpys_little_endian_packbits():
    codes = torch.randint(0, 2, (5, 13), generator=torch.Generator().manual_seed(0))
    expected = np.packbits(codes.numpy().astype(np.uint8), bitorder="little")
    assert pack(codes, 1).numpy().tolist() == expected.tolist()


def test_non_contiguous_codes_pack_in_row_major_order():
    codes = torch.arange(12, dtype=torch.uint8).reshape(3, 4).T
    assert torch.equal(unpack(pack(codes, 4), 4, (4, 3)), codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_first_code_that_does_not_fit_is_refused(bits):
    for code in (2**bits, -1):
        with pytest.raises(ValueError, match=f"codes must lie in 0 … {2**bits - 1}, "):
            pack(torch.tensor([0, code]), bits)


def test_bad_input(as_user):
    codes = torch.tensor([0, 7], dtype=torch.uint8)
    for bits in (0, 9, 2.0, True):
        with pytest.raises(ValueError, match="bits must be"):
            pack(codes, bits)
    with pytest.raises(ValueError, match="0 … 3, got 0 … 7"):
        pack(codes, 2)
    with pytest.raises(ValueError, match="got -1"):
        pack(torch.tensor([-1, 0]), 2)
    with pytest.raises(TypeError, match="integer"):
        pack(codes.float(), 3)
    for shape, bits in ((3, 3), ((2, 3), 3), (2, 9)):
        with pytest.raises(ValueError, match=r"bytes|bits"):
            unpack(pack(codes, 3), bits, shape)
