"""What every method asks of a Hessian, and that it is looked at again when it has changed."""

import pytest
import torch

from mlcomp import checks
from mlcomp.checks import check_hessian
from mlcomp.data import make_layer
from mlcomp.layerwise import layer_hessian

INP = 130  # more than two blocks of rows


def good() -> torch.Tensor:
    return layer_hessian(make_layer(1, INP, 2 * INP, seed=0)[1])


@pytest.mark.parametrize("place", [(0, 1), (1, 0), (3, 129), (129, 3), (100, 70), (70, 100), (128, 129)])
@pytest.mark.parametrize("sign", [1, -1])
def test_one_entry_that_differs_from_its_mirror_is_seen(place, sign):
    hessian = good()
    assert torch.equal(check_hessian(hessian), hessian)
    hessian[place] += sign * 2e-4 * hessian.abs().max()
    with pytest.raises(ValueError, match="must be symmetric"):
        check_hessian(hessian)


def test_what_was_checked_is_checked_again_after_it_was_written_into():
    hessian = check_hessian(good())
    assert check_hessian(hessian, INP) is hessian
    with pytest.raises(ValueError, match="to match a weight with 7 inputs"):
        check_hessian(hessian, 7)
    hessian[2, 2] = -1
    with pytest.raises(ValueError, match="negative diagonal"):
        check_hessian(hessian)


def test_another_one_is_checked_though_it_lies_where_the_last_one_lay():
    first = check_hessian(good())
    other = first.view(INP, INP)
    assert other.data_ptr() == first.data_ptr()
    other.data[2, 3] = torch.nan  # moves no version
    with pytest.raises(ValueError, match="NaN"):
        check_hessian(other)


def test_a_second_look_costs_none(monkeypatch):
    count = 0

    def blocks(matrix):
        nonlocal count
        count += 1
        return [slice(0, len(matrix))]

    monkeypatch.setattr(checks, "row_blocks", blocks)
    hessian = check_hessian(good())
    for _ in range(3):
        check_hessian(hessian)
    assert count == 1
    with torch.inference_mode():
        hessian = torch.eye(INP)  # of such a tensor nobody counts the versions
        assert hessian.is_inference()
        for _ in range(2):
            hessian = check_hessian(hessian)
    assert count == 3
