import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.formats import PackedSigns, pack_signs, xnor_matmul
from tests.examples import examples


def drawn(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def signs(x):
    return torch.where(x >= 0, 1.0, -1.0)


@given(st.integers(1, 9), st.integers(1, 70), st.integers(1, 6), st.integers(0, 10**6))
@examples(60)
def test_is_the_product_of_the_signs(rows, columns, out, seed):
    x, w = drawn(rows, columns, seed), drawn(out, columns, seed + 1)
    got = xnor_matmul(pack_signs(x), pack_signs(w))
    assert got.dtype == torch.int32
    assert torch.equal(got.double(), signs(x).double() @ signs(w).double().T)
    assert ((got - columns) % 2 == 0).all()


def test_by_whole_numbers_of_python():
    x, w = drawn(3, 21), drawn(4, 21, 1)
    a, b = ([int.from_bytes(bytes(row.tolist()), "little") for row in pack_signs(m).packed] for m in (x, w))
    want = [[21 - 2 * (p ^ q).bit_count() for q in b] for p in a]
    assert xnor_matmul(pack_signs(x), pack_signs(w)).tolist() == want


@pytest.mark.parametrize("columns", [1, 7, 8, 9, 65])
def test_there_and_back(columns):
    x = drawn(5, columns)
    packed = pack_signs(x)
    assert torch.equal(packed.signs(), signs(x))
    assert packed.nbytes == 5 * -(-columns // 8)


def test_zero_is_positive():
    packed = pack_signs(torch.tensor([[0.0, -0.0, -1e-30, 1e-30]]))
    assert packed.signs().tolist() == [[1, 1, -1, 1]]
    assert packed.packed.tolist() == [[0b1011]]


def test_in_parts(monkeypatch):
    x, w = drawn(10, 40), drawn(3, 40, 1)
    whole = xnor_matmul(pack_signs(x), pack_signs(w))
    monkeypatch.setattr(sys.modules["mlcomp.formats.xnor_matmul"], "CHUNK", 1)
    assert torch.equal(xnor_matmul(pack_signs(x), pack_signs(w)), whole)


def test_bad_input(as_user):
    x = pack_signs(drawn(2, 9))
    with pytest.raises(ValueError, match="x has 9 columns and weight 10"):
        xnor_matmul(x, pack_signs(drawn(2, 10)))
    with pytest.raises(TypeError, match="weight must come from pack_signs"):
        xnor_matmul(x, drawn(2, 9))
    with pytest.raises(ValueError, match=r"x\.packed must be \(rows, 2\) uint8 for 9 columns"):
        xnor_matmul(PackedSigns(x.packed[:, :1], 9), x)
    for bad in (torch.ones(3), torch.ones(3, 0), torch.tensor([[float("nan")]])):
        with pytest.raises(ValueError, match=r"must be a matrix|NaN"):
            pack_signs(bad)
