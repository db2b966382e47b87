import pytest
import torch

from mlcomp.formats import pack, sparse_nbytes
from mlcomp.prune import magnitude


@pytest.mark.parametrize("bits", [1, 3, 4, 8])
@pytest.mark.parametrize("shape", [(5, 7), (16, 32), (1, 1)])
def test_dense_and_bitmask_are_what_packing_gives(shape, bits):
    g = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 2**bits, shape, generator=g) * (torch.rand(shape, generator=g) < 0.4)
    mask = codes != 0
    nnz = int(mask.sum())
    assert sparse_nbytes(shape, nnz, format="dense", value_bits=bits) == pack(codes, bits).nbytes
    stored = pack(codes[mask], bits).nbytes + pack(mask.to(torch.uint8), 1).nbytes
    assert sparse_nbytes(shape, nnz, format="bitmask", value_bits=bits) == stored


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_csr_is_what_torch_stores():
    g = torch.Generator().manual_seed(0)
    weight = magnitude(torch.randn(13, 17, generator=g), sparsity=0.7)
    csr = weight.to_sparse_csr()
    for index_bits, index in ((32, torch.int32), (64, torch.int64)):
        stored = csr.values().nbytes + csr.col_indices().to(index).nbytes + csr.crow_indices().to(index).nbytes
        nnz = int(weight.count_nonzero())
        assert sparse_nbytes((13, 17), nnz, format="csr", value_bits=32, index_bits=index_bits) == stored


@pytest.mark.parametrize("pattern", [(2, 4), (4, 8), (1, 4), (3, 7), (0, 2), (2, 2)])
@pytest.mark.parametrize("inp", [16, 21])
def test_nm_is_what_packing_gives(pattern, inp):
    block = pattern[1]
    weight = magnitude(torch.randn(3, inp, generator=torch.Generator().manual_seed(0)), pattern=pattern)
    kept = weight.nonzero()  # random weights have no zeros of their own, so every slot is used
    nnz = len(kept)
    place = (kept[:, 1] % block).to(torch.uint8)
    metadata = pack(place, (block - 1).bit_length()).nbytes
    for bits in (4, 16):
        values = -(-nnz * bits // 8)
        assert sparse_nbytes((3, inp), nnz, format="n:m", value_bits=bits, pattern=pattern) == values + metadata


def test_known_figures():
    # 2:4 in fp16 keeps half the values and 2 bits for each: 9/16 of dense (Mishra et al. 2021).
    assert sparse_nbytes((64, 64), 2048, format="n:m", value_bits=16, pattern=(2, 4)) * 16 == 9 * 64 * 64 * 2
    # Lecture 3: CSR metadata is an overhead of 200 % over fp16 values (32-bit indices), row pointers aside.
    values = 2048 * 2
    assert sparse_nbytes((64, 64), 2048, format="csr", value_bits=16) == 3 * values + 65 * 4


def test_an_index_counts_from_zero_and_a_row_pointer_to_the_number_of_non_zeros():
    # 8 bits: 256 columns have the indices 0 … 255; a pointer is at most nnz, 255 at the most.
    assert sparse_nbytes((4, 256), 255, format="csr", value_bits=8, index_bits=8) == 255 + 255 + 5
    for inp, nnz in ((257, 255), (256, 256)):
        with pytest.raises(ValueError, match="cannot count"):
            sparse_nbytes((4, inp), nnz, format="csr", value_bits=8, index_bits=8)


def test_bad_input(as_user):
    good = {"format": "bitmask", "value_bits": 16}
    with pytest.raises(ValueError, match="format must be"):
        sparse_nbytes((4, 4), 1, format="coo", value_bits=16)
    for shape, nnz in (((4, 4), 17), ((4, 4), -1), ((0, 4), 0)):
        with pytest.raises(ValueError, match="nnz must be"):
            sparse_nbytes(shape, nnz, **good)
    with pytest.raises(ValueError, match="at least 1"):
        sparse_nbytes((4, 4), 1, format="dense", value_bits=0)
    with pytest.raises(ValueError, match="pattern belongs"):
        sparse_nbytes((4, 4), 1, **good, pattern=(2, 4))
    with pytest.raises(ValueError, match="pattern belongs"):
        sparse_nbytes((4, 4), 1, format="n:m", value_bits=16)
    with pytest.raises(ValueError, match="slots"):
        sparse_nbytes((4, 4), 9, format="n:m", value_bits=16, pattern=(2, 4))
    with pytest.raises(ValueError, match="cannot count"):
        sparse_nbytes((4, 400), 9, format="csr", value_bits=16, index_bits=8)
