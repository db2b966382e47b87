import pytest
import torch

from mlcomp.formats.xnor_matmul import PackedSigns, pack_signs
from mlcomp.formats.xnor_matmul import xnor_matmul as reference
from mlcomp.kernels.xnor_matmul import xnor_matmul


@pytest.mark.parametrize("rows", [1, 5, 17])
@pytest.mark.parametrize(("out", "columns"), [(1, 1), (67, 31), (130, 64), (9, 401), (64, 4096), (3, 5000)])
def test_equals_the_reference_and_the_product_of_signs(random, rows, out, columns):
    x, w = random(rows, columns), random(out, columns, seed=1)
    got = xnor_matmul(pack_signs(x), pack_signs(w))
    assert got.dtype == torch.int32
    assert torch.equal(got, reference(pack_signs(x), pack_signs(w)))
    signs = [torch.where(v >= 0, 1.0, -1.0) for v in (x, w)]
    assert torch.equal(got.float(), signs[0] @ signs[1].T)


def test_all_alike_and_all_different(device):
    ones = torch.ones(2, 77, device=device)
    assert (xnor_matmul(pack_signs(ones), pack_signs(ones)) == 77).all()
    assert (xnor_matmul(pack_signs(ones), pack_signs(-ones)) == -77).all()


def test_packed_rows_of_any_layout(random):
    x, w = pack_signs(random(4, 96)), pack_signs(random(8, 96, seed=1))
    strided = PackedSigns(w.packed.repeat_interleave(2, 0)[::2], 96)
    assert torch.equal(xnor_matmul(x, strided), reference(x, w))


def test_tiles_as_on_a_gpu(random, monkeypatch):
    monkeypatch.setattr("mlcomp.kernels.xnor_matmul.INTERPRETED", False)
    for rows, out, columns in ((1, 70, 4200), (17, 65, 300)):
        x, w = pack_signs(random(rows, columns)), pack_signs(random(out, columns, seed=1))
        assert torch.equal(xnor_matmul(x, w), reference(x, w))


def test_no_rows(random):
    none = PackedSigns(pack_signs(random(1, 40)).packed[:0], 40)
    assert xnor_matmul(none, pack_signs(random(3, 40))).shape == (0, 3)


def test_bad_input(random, as_user):
    x = pack_signs(random(2, 40))
    with pytest.raises(ValueError, match="40 columns and weight 41"):
        xnor_matmul(x, pack_signs(random(2, 41)))
    with pytest.raises(TypeError, match="pack_signs"):
        xnor_matmul(x, random(2, 40))
