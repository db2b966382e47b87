import sys

import pytest
import torch

from mlcomp.data import digits


def test_splits():
    x, y = digits()
    assert x.shape == (1797, 1, 8, 8) and x.dtype == torch.float32 and y.dtype == torch.int64
    assert float(x.min()) == 0 and float(x.max()) == 1
    train, held_out = digits("train"), digits("held_out")
    for digit in range(10):
        of_digit = x[y == digit]
        assert torch.equal(held_out[0][held_out[1] == digit], of_digit[4::5])
    assert torch.equal(train[1].bincount() + held_out[1].bincount(), y.bincount())
    assert len(train[1]) == 1442 and len(held_out[1]) == 355


def test_bad_split(as_user):
    with pytest.raises(ValueError, match="split"):
        digits("test")


def test_missing_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "sklearn.datasets", raising=False)
    with pytest.raises(ImportError, match=r'needs sklearn, which is not installed .*\.whl\[notebooks\]"'):
        digits()
