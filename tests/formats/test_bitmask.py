import numpy as np
import pytest
import torch

from mlcomp.formats import Bitmask, sparse_nbytes
from mlcomp.prune import magnitude

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def sparse(out=13, inp=19, sparsity=0.6, dtype=torch.float32):
    weight = torch.randn(out, inp, generator=torch.Generator().manual_seed(0)).to(dtype)
    return magnitude(weight, sparsity=sparsity)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sparsity", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("shape", [(13, 19), (1, 1), (8, 8), (1, 9)])
def test_the_mask_is_numpys_packbits_and_the_round_trip_is_exact(shape, sparsity, dtype):
    weight = sparse(*shape, sparsity, dtype)
    before = weight.clone()
    stored = Bitmask.from_dense(weight)
    bits = np.packbits((weight.float() != 0).numpy(), bitorder="little")
    assert stored.mask.numpy().tolist() == bits.tolist()
    assert stored.values.tolist() == [v for v in weight.flatten().tolist() if v != 0]
    back = stored.dequantize()
    assert back.dtype == dtype and torch.equal(back, weight) and torch.equal(weight, before)
    nnz = int(weight.count_nonzero())
    want = sparse_nbytes(shape, nnz, format="bitmask", value_bits=8 * weight.element_size())
    assert stored.nbytes == want and stored.bits_per_weight == 8 * want / weight.numel()


def test_smaller_than_dense_from_one_zero_in_sixteen_on():
    weight = torch.ones(64, 64, dtype=torch.float16)
    weight[:, :4] = 0  # 6.25 %
    assert Bitmask.from_dense(weight).nbytes == weight.nbytes
    weight[0, 4] = 0
    assert Bitmask.from_dense(weight).nbytes == weight.nbytes - 2


def test_a_zero_with_a_sign_and_the_smallest_number():
    weight = torch.tensor([[-0.0, 1e-45], [0.0, -1e-45]])
    stored = Bitmask.from_dense(weight)
    assert len(stored.values) == 2 and torch.equal(stored.dequantize(), weight)


def test_a_weight_that_is_trained_or_transposed():
    weight = torch.nn.Parameter(sparse())
    back = Bitmask.from_dense(weight.T).dequantize()
    assert torch.equal(back, weight.T) and not back.requires_grad


def test_bad_input(as_user):
    weight = sparse()
    stored = Bitmask.from_dense(weight)
    for bad, error in ((weight.long(), TypeError), (weight[0], ValueError), (weight[:0], ValueError)):
        with pytest.raises(error, match="weight must be"):
            Bitmask.from_dense(bad)
    with pytest.raises(ValueError, match="NaN or infinite"):
        Bitmask.from_dense(weight / 0)
    with pytest.raises(ValueError, match="one for each 1 of mask"):
        Bitmask(stored.values[1:], stored.mask, stored.shape)
    with pytest.raises(ValueError, match="bytes"):
        Bitmask(stored.values, stored.mask[1:], stored.shape)
    with pytest.raises(TypeError, match="values must be floating point"):
        Bitmask(stored.mask, stored.mask, stored.shape)
