import pytest
import torch
from scipy.sparse import csr_array

from mlcomp.formats import CSR, csr_matmul, sparse_nbytes
from tests.formats.test_bitmask import DTYPES, sparse


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sparsity", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("shape", [(13, 19), (1, 1), (9, 1)])
def test_it_stores_what_scipy_stores(shape, sparsity, dtype):
    weight = sparse(*shape, sparsity, dtype)
    before = weight.clone()
    stored, want = CSR.from_dense(weight), csr_array(weight.double().numpy())
    assert stored.values.tolist() == want.data.tolist()
    assert stored.columns.tolist() == want.indices.tolist()
    assert stored.pointers.tolist() == want.indptr.tolist()
    assert stored.columns.dtype == stored.pointers.dtype == torch.int32
    back = stored.dequantize()
    assert back.dtype == dtype and torch.equal(back, weight) and torch.equal(weight, before)
    nnz = int(weight.count_nonzero())
    size = sparse_nbytes(shape, nnz, format="csr", value_bits=8 * weight.element_size())
    assert stored.nbytes == size and stored.bits_per_weight == 8 * size / weight.numel()


def test_the_overhead_of_indices_is_200_percent_of_16_bit_values():
    weight = sparse(64, 64, 0.5, torch.float16)
    stored = CSR.from_dense(weight)
    assert stored.columns.nbytes == 2 * stored.values.nbytes
    # Smaller than dense from 66.7 % zeros on: 6 bytes a value against 2 a weight, row pointers aside.
    weight = sparse(512, 512, 0.665, torch.float16)
    assert CSR.from_dense(weight).nbytes > weight.nbytes
    weight = sparse(512, 512, 0.671, torch.float16)
    assert CSR.from_dense(weight).nbytes < weight.nbytes


@pytest.mark.parametrize("sparsity", [0.0, 0.7, 1.0])
def test_the_product_is_scipys(sparsity):
    weight = sparse(13, 19, sparsity, torch.float64)
    weight[4] = 0  # a row without values
    x = torch.randn(5, 19, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    want = torch.from_numpy((csr_array(weight.numpy()) @ x.numpy().T).T)
    # Sums of 19 products of size 1 in float64, in another order.
    torch.testing.assert_close(csr_matmul(x, CSR.from_dense(weight)), want, rtol=0, atol=1e-13)


def test_the_product_keeps_the_dtype_of_x_and_sums_in_float32():
    weight = torch.full((2, 4096), 0.1, dtype=torch.float16)
    y = csr_matmul(torch.ones(1, 4096, dtype=torch.float16), CSR.from_dense(weight))
    # Steps of float16 at 409 are 0.25: a sum in float16 would stop growing before.
    assert y.dtype == torch.float16 and (y - 4096 * float(weight[0, 0])).abs().max() < 0.25
    assert csr_matmul(torch.ones(0, 4096), CSR.from_dense(weight)).shape == (0, 2)


def test_bad_input(as_user):
    weight = sparse()
    stored = CSR.from_dense(weight)
    with pytest.raises(TypeError, match="floating point"):
        CSR.from_dense(weight.long())
    with pytest.raises(ValueError, match="NaN or infinite"):
        CSR.from_dense(weight / 0)
    for x in (torch.ones(2, 18), torch.ones(19), torch.ones(1, 2, 19)):
        with pytest.raises(ValueError, match=r"x must be \(tokens, 19\)"):
            csr_matmul(x, stored)
    with pytest.raises(ValueError, match="the result holds"):
        csr_matmul(torch.full((1, 19), 6e4, dtype=torch.float16), CSR.from_dense(torch.ones(2, 19)))
    falling = stored.pointers.clone()
    falling[3] = 0
    outside = stored.columns.clone()
    outside[2] = 19
    for columns, pointers, match in (
        (stored.columns.long(), stored.pointers, "columns must be int32"),
        (stored.columns[1:], stored.pointers, "columns must be int32"),
        (stored.columns, stored.pointers[1:], "pointers must be int32"),
        (outside, stored.pointers, "columns must lie in 0 … 18"),
        (stored.columns, falling, "pointers must not fall"),
        (stored.columns, stored.pointers + 1, "pointers must not fall"),
    ):
        with pytest.raises(ValueError, match=match):
            CSR(stored.values, columns, pointers, stored.shape)
