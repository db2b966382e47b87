import pytest
import torch

from mlcomp.formats import dtype_support
from mlcomp.formats.dtype_support import OPERATIONS


@pytest.fixture(scope="module")
def table():
    return dtype_support()


def test_the_matrix_tried_is_exact_in_the_narrowest_type():
    x = (torch.arange(1024).reshape(32, 32) % 7 == 0).double()
    product = x @ x
    assert product.max() <= 8 and torch.equal(product.to(torch.float8_e5m2).double(), product)
    assert x.sum() < 2**8 and len(product.unique()) > 2  # bfloat16 holds the sum; a wrong product would be seen


def test_what_every_torch_has(table):
    for name in ("float64", "float32"):
        for operation in OPERATIONS:
            assert table[name][operation].works == (operation != "int8 to int32 matmul")
    assert table["int8"]["int8 to int32 matmul"].works
    assert not table["float32"]["int8 to int32 matmul"].works


def test_an_operation_that_raises_and_one_that_is_wrong(table):
    assert not table["float8_e4m3fn"]["add"].works and "not implemented" in table["float8_e4m3fn"]["add"].says
    # true + true is true, which is 1 and not 2.
    assert table["bool"]["add"].says == f"{147} of 1024 numbers are wrong"
    assert (torch.arange(1024) % 7 == 0).sum() == 147


def test_names_without_arithmetic(table):
    """Torch may have a name for four bits or three; nothing can be put into such a tensor, or it has no such name."""
    for name in ("int4", "int3", "int2"):
        for support in table[name].values():
            assert not support.works and support.says


def test_a_type_that_there_is_not():
    (support,) = dtype_support(["int3000"], ["add"])["int3000"].values()
    assert not support.works and support.says.endswith("has no int3000")
    assert dtype_support(["Tensor"], ["add"])["Tensor"]["add"].says.endswith("has no Tensor")


def test_unknown_operations(as_user):
    with pytest.raises(ValueError, match=r"operations must be among store, add, .* got 'divide'"):
        dtype_support(operations=["add", "divide"])
