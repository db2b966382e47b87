import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.prune import nm_mask, smallest_mask

# Few distinct values, so that ties are the rule.
ROWS = st.lists(st.lists(st.integers(-2, 2), min_size=7, max_size=7), min_size=1, max_size=4)


@given(ROWS, st.integers(0, 7))
def test_smallest_mask_is_python_sorted(rows, count):
    mask = smallest_mask(torch.tensor(rows), count)
    for row, marked in zip(rows, mask.tolist(), strict=True):
        # Python's sort is stable: equal scores stay in the order of their indices.
        chosen = sorted(range(7), key=row.__getitem__)[:count]
        assert [i for i, m in enumerate(marked) if m] == sorted(chosen)


@given(ROWS, st.integers(1, 9), st.data())
def test_nm_mask_is_smallest_mask_of_each_block(rows, block, data):
    zeros = data.draw(st.integers(0, block))
    mask = nm_mask(torch.tensor(rows), (zeros, block))
    for row, marked in zip(rows, mask.tolist(), strict=True):
        for start in range(0, 7, block):
            part = torch.tensor(row[start : start + block])
            count = zeros if len(part) == block else int(zeros * len(part) / block + 1e-9)
            assert marked[start : start + block] == smallest_mask(part, count).tolist()


def test_ragged_tail_of_98_columns():
    mask = nm_mask(torch.rand(5, 98, generator=torch.Generator().manual_seed(0)), (2, 4))
    assert (mask[:, 96:].sum(1) == 1).all() and (mask.sum(1) == 49).all()


def test_best_of_all_masks():
    scores = torch.rand(8, generator=torch.Generator().manual_seed(0))
    mask = nm_mask(scores, (2, 4))
    sums = [
        float(scores[list(a)].sum() + scores[4:][list(b)].sum())
        for a in itertools.combinations(range(4), 2)
        for b in itertools.combinations(range(4), 2)
    ]
    assert float(scores[mask].sum()) == pytest.approx(min(sums))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int32])
def test_dtypes_infinities_and_extra_dimensions(dtype):
    scores = torch.tensor([[3, 1, 2], [2, 2, 2]], dtype=dtype).expand(4, 2, 3)
    assert smallest_mask(scores, 2)[3].tolist() == [[False, True, True], [True, True, False]]
    if dtype.is_floating_point:
        scores = torch.tensor([float("inf"), 0, -float("inf")], dtype=dtype)
        assert smallest_mask(scores, 1).tolist() == [False, False, True]


def test_bad_input(as_user):
    with pytest.raises(ValueError, match="NaN"):
        smallest_mask(torch.tensor([float("nan"), 1]), 1)
    with pytest.raises(ValueError, match="dimension"):
        smallest_mask(torch.tensor(1.0), 0)
    with pytest.raises(ValueError, match="dimension"):
        nm_mask(torch.tensor(1.0), (2, 4))
    for count in (-1, 3):
        with pytest.raises(ValueError, match="count must be"):
            smallest_mask(torch.zeros(2), count)
    for pattern in ((5, 4), (0, 0), (-1, 4), [2, 4], (2.0, 4)):
        with pytest.raises(ValueError, match="pattern must be"):
            nm_mask(torch.zeros(8), pattern)
