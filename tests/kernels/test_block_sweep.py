import pytest
import torch

from mlcomp.kernels.block_sweep import BLOCK, BlockSweep, launches
from mlcomp.kernels.sparsegpt import sparsegpt
from mlcomp.prune import sparsegpt as reference
from tests.kernels.test_exact_obs import layer


@pytest.mark.parametrize("block_size", [1, 5, 32, 128, 1000])
@pytest.mark.parametrize(("inp", "span"), [(1, 1), (40, 8), (300, 32), (300, 100), (300, 300), (513, 200), (300, 1)])
def test_launches_cover_all_columns_and_start_at_every_span(inp, span, block_size):
    found = list(launches(inp, span, block_size))
    assert [start for start, _, _ in found] == [0, *(end for _, end, _ in found[:-1])] and found[-1][1] == inp
    assert set(range(0, inp, span)) <= {start for start, _, _ in found}
    assert all(start < end <= stop <= inp and end - start <= min(block_size, BLOCK) for start, end, stop in found)
    batch = 0
    for start, end, stop in found:
        # What chooses at a multiple of span sees the next ``span`` columns: they are in the batch, or it just began.
        assert start % span or start == batch or min(start + span, inp) <= stop
        batch = stop if end == stop else batch
    assert batch == inp


def test_the_errors_of_the_columns_are_left_in_their_place(random):
    # All weights go to zero: e solves e U = w, whatever the blocks.
    w, factor = random(3, 20).double(), (random(20, 20, seed=1) / 5 + torch.eye(20, device=random(1).device)).triu()
    want = torch.linalg.solve_triangular(factor.double(), w, upper=True, left=False)
    gone = torch.ones(20, 3, dtype=torch.bool, device=w.device)
    for span, block in ((20, 128), (20, 6), (2, 6)):
        before = w.clone()
        sweep = BlockSweep(w, factor.double(), dtype=torch.float64, removed=gone)
        for columns in launches(20, span, block):
            sweep.fix(*columns)
        torch.testing.assert_close(sweep.weight, want, rtol=1e-9, atol=1e-9)  # float64 at a condition of some 100
        assert not sweep.result.any() and torch.equal(w, before)


def test_programs_of_few_rows_as_on_a_gpu(random, monkeypatch):
    monkeypatch.setattr("mlcomp.kernels.block_sweep.INTERPRETED", False)
    weight, hessian = layer(random, 9, 12)
    got, want = (f(weight.double(), hessian, pattern=(2, 4)) for f in (sparsegpt, reference))
    assert torch.equal(got != 0, want != 0) and torch.allclose(got, want, rtol=0, atol=1e-9)
