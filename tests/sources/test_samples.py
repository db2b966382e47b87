import math

import pytest
import scipy.stats
import torch

from mlcomp.sources import sample
from tests.sources.partial_moments import moments


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_sample_is_the_plain_sums(dtype):
    tensor = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = tensor.clone()
    w = tensor.double().flatten()
    source = sample(tensor)
    assert torch.equal(tensor, before)
    assert source.kurtosis == pytest.approx(scipy.stats.kurtosis(w.numpy(), fisher=False), rel=1e-12)
    assert source.energy == pytest.approx(float(w.square().mean()), rel=1e-12)
    assert source.bound == float(w.abs().max())
    for x in (-1.0, 0.0, 0.5, float(w[3])):
        below = w <= x
        expected = torch.stack([below.double(), w * below, w**2 * below]).mean(1)
        torch.testing.assert_close(moments(source, torch.tensor([x], dtype=torch.float64))[:, 0], expected)
    small = w.abs().sort().values
    for share in (0.0, 0.1, 0.5, 1.0):
        count = math.floor(share * 35 + 0.5)
        assert source.smallest_energy(share) == pytest.approx(float(small[:count].square().sum() / 35), abs=1e-15)


def test_a_quantile_lies_halfway_between_its_two_samples():
    w = torch.tensor([5.0, -1.0, 0.0, 3.0])
    shares = torch.tensor([0.25, 0.5, 0.75, 0.0, 1.0], dtype=torch.float64)
    # Below the first sample and above the last there is nothing to halve: the outermost two.
    assert sample(w).quantile(shares).tolist() == [-0.5, 1.5, 4.0, -0.5, 4.0]


def test_a_large_offset_costs_no_digits_of_the_spread():
    w = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    edges = torch.tensor([-math.inf, -0.5, 0.1, math.inf], dtype=torch.float64)
    near, far = sample(w).cells(edges), sample(w + 2.0**24).cells(edges + 2.0**24)
    # An offset of 2²⁴ leaves 29 of 53 bits of the entries themselves; sums of squares about 0 would leave none.
    torch.testing.assert_close(far.spread, near.spread, rtol=1e-7, atol=0)
    torch.testing.assert_close(far.centre - 2.0**24, near.centre, rtol=0, atol=1e-7)


def test_bad_input(as_user):
    with pytest.raises(ValueError, match="NaN"):
        sample(torch.tensor([1.0, float("nan")]))
    for constant in (torch.ones(4), torch.zeros(0)):
        with pytest.raises(ValueError, match="two different values"):
            sample(constant)
    with pytest.raises(TypeError, match="floating point"):
        sample(torch.ones(3, dtype=torch.int32))
