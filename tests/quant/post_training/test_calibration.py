import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.quant.grid import fit_grid
from mlcomp.quant.post_training.calibration import RULES, Histogram, activation_grid, observer


def skewed(count: int = 20000, seed: int = 0) -> torch.Tensor:
    """Gaussian with a few large values, mostly positive."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(count, generator=g) + 0.5
    x[: count // 500] *= 8
    return x[torch.randperm(count, generator=g)]


def seen(rule: str, batches, **options):
    watch = observer(rule, **options)
    for x in batches:
        watch.add(x)
    return watch.range()


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40), st.integers(1, 7))
def test_extremes_do_not_depend_on_the_batches(values, size):
    x = torch.tensor(values)
    assert seen("minmax", x.split(size)) == (float(x.min()), float(x.max()))
    low, high = seen("percentile", x.split(size), share=1.0)
    assert (low, high) == (float(x.min()), float(x.max()))


def test_moving_average_against_its_definition():
    batches = list(skewed(1000).split(100))
    low, high = float(batches[0].min()), float(batches[0].max())
    for x in batches[1:]:
        low, high = 0.75 * low + 0.25 * float(x.min()), 0.75 * high + 0.25 * float(x.max())
    assert seen("moving_average", batches, momentum=0.25) == pytest.approx((low, high), rel=1e-12)
    constant = [torch.tensor([-1.0, 3.0])] * 5
    assert seen("moving_average", constant) == (-1.0, 3.0)


@given(st.integers(0, 2**31), st.floats(1e-3, 1e3), st.integers(50, 900))
def test_histogram_counts_everything_whatever_the_order(seed, scale, size):
    x = skewed(2000, seed) * scale
    growing, whole = Histogram(), Histogram()
    for part in x.sort().values.abs().split(size):  # small values first: the range has to double
        growing.add(part)
    whole.add(x.abs())
    assert growing.radius == whole.radius and growing.counts.sum() == len(x)
    assert growing.radius / 2 <= float(x.abs().max()) <= growing.radius
    # histc places a value that lies on an edge up to rounding, so that single counts may move by one bin.
    assert (growing.counts.cumsum(0) - whole.counts.cumsum(0)).abs().max() <= 2


@pytest.mark.parametrize("share", [0.9, 0.99, 0.999])
def test_percentiles_are_sample_quantiles_up_to_a_bin(share):
    x = skewed()
    low, high = seen("percentile", x.split(3000), share=share)
    tail = (1 - share) / 2
    wanted = torch.quantile(x.double(), torch.tensor([tail, 1 - tail], dtype=torch.float64))
    # Radius 64 at most, in 2^15 bins; one bin each way, and the gap between two neighbouring samples.
    for got, quantile in zip((low, high), wanted.tolist(), strict=True):
        inside = (x.double() - quantile).abs() < abs(got - quantile)
        assert abs(got - quantile) < 0.01 or int(inside.sum()) <= 2
    kept = float(((x >= low) & (x <= high)).double().mean())
    assert kept >= share - 1e-9


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_least_squares_against_brute_force_on_the_values_themselves(bits):
    x = skewed().relu()
    low, high = seen("mse", x.split(4096), bits=bits)

    def error(low, high):
        grid = activation_grid(low, high, bits=bits)
        return float((x - grid.round(x[None])[0]).double().square().mean())

    best = fit_grid(x[None], bits=bits, clip="mse")
    brute = float((x - best.round(x[None])[0]).double().square().mean())
    # The histogram knows values up to half a bin; at 8 bits a step is about 60 bins here.
    assert error(low, high) <= brute * 1.01
    assert error(low, high) <= error(0.0, float(x.max()))
    if bits < 8:
        assert high < 0.9 * float(x.max()) and error(low, high) < 0.8 * error(0.0, float(x.max()))


def test_an_outlier_rules_the_extremes_and_not_the_others():
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(1))
    x[7] = 1000.0
    batches = x.split(10_000)
    assert seen("minmax", batches)[1] == 1000.0
    assert seen("percentile", batches, share=0.999)[1] < 5
    late = (*batches[1:], batches[0])  # the average has seen nine ordinary batches when the outlier comes
    assert seen("moving_average", late)[1] < 110
    assert seen("mse", batches, bits=2)[1] <= 1000.0


@pytest.mark.parametrize("rule", RULES)
def test_constants_dtypes_and_purity(rule):
    for value in (0.0, 3.0, -2.0):
        low, high = seen(rule, [torch.full((2, 3), value)] * 2)
        grid = activation_grid(low, high, bits=8)
        assert float(grid.round(torch.full((1, 1), value))) == pytest.approx(value, rel=1e-6)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        x = skewed(500).to(dtype)
        before = x.clone()
        low, high = seen(rule, [x])
        assert low < high and torch.equal(x, before)
    zeros_first = seen(rule, [torch.zeros(5), torch.ones(5)], momentum=1.0, share=0.6)
    assert zeros_first[1] == pytest.approx(1.0)


def test_grid_of_a_range_holds_zero():
    grid = activation_grid(0.5, 2.0, bits=4)
    assert float(grid.zero) == 0 and float(grid.step) == pytest.approx(2 / 15)
    grid = activation_grid(-1.0, 2.0, bits=4)
    assert float(grid.round(torch.zeros(1, 1))) == 0


def test_bad_input():
    for options, message in (
        ({"rule": "max"}, "rule must be one of"),
        ({"rule": "minmax", "bits": 9}, "bits must be"),
        ({"rule": "moving_average", "momentum": 0.0}, "momentum must"),
        ({"rule": "percentile", "share": 0.5}, "share of values"),
        ({"rule": "percentile", "share": math.nan}, "share of values"),
    ):
        with pytest.raises(ValueError, match=message):
            observer(**options)
    for rule in RULES:
        watch = observer(rule)
        with pytest.raises(ValueError, match="no batch was seen"):
            watch.range()
        with pytest.raises(ValueError, match="at least one value"):
            watch.add(torch.ones(0))
        with pytest.raises(ValueError, match="NaN or infinite"):
            watch.add(torch.tensor([1.0, math.nan]))
