import pytest
import torch

from mlcomp.data import mnist5k, mnist_calibration


def test_splits_are_whole_balanced_and_apart():
    (x, y), (hx, hy) = mnist5k("train"), mnist5k("held_out")
    assert x.shape == (4000, 1, 28, 28) and hx.shape == (1000, 1, 28, 28)
    assert x.dtype == torch.float32 and y.dtype == torch.int64
    assert y.bincount().tolist() == [400] * 10 and hy.bincount().tolist() == [100] * 10
    assert float(x.min()) == 0 and float(x.max()) == 1
    rows = torch.cat((x, hx)).flatten(1)
    assert len(rows.unique(dim=0)) == 5000  # no image stands in both, or twice


def test_split_is_fixed():
    """Numbers measured once: a changed split would make every committed result silently wrong."""
    (x, y), (hx, _) = mnist5k("train"), mnist5k("held_out")
    assert int((x.double() * 255).round().sum()) == 104_848_804
    assert int((hx.double() * 255).round().sum()) == 26_418_298
    assert int((x[0].double() * 255).round().sum()) == 31_095 and int(y[0]) == 0


def test_count_is_a_balanced_beginning():
    x, y = mnist5k("train", count=25)
    assert y.tolist() == [*range(10), *range(10), *range(5)]
    assert torch.equal(x, mnist5k("train")[0][:25])


def test_calibration_batches():
    batches = mnist_calibration(300, batch_size=128)
    assert [len(b) for b in batches] == [128, 128, 44]
    assert torch.equal(torch.cat(batches), mnist5k("train", count=300)[0])


def test_bad_input(as_user):
    with pytest.raises(ValueError, match="split"):
        mnist5k("test")
    for count in (0, 1001, -1):
        with pytest.raises(ValueError, match="1 to 1000"):
            mnist5k("held_out", count=count)
    with pytest.raises(ValueError, match="batch_size"):
        mnist_calibration(10, batch_size=0)
