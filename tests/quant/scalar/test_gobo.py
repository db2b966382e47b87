import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.quant import gobo, gobo_outliers, lloyd_max
from tests.examples import examples


def drawn(rows=40, columns=50, seed=0, spread=0.05):
    g = torch.Generator().manual_seed(seed)
    w = spread * torch.randn(rows, columns, generator=g)
    w.view(-1)[torch.randint(w.numel(), (6,), generator=g)] = 10 * spread
    return w


def literal(w, bits, log_density=-4.0, max_steps=1000):
    """The algorithm with lists: outliers, equal bins, then nearest level and mean while the L1 error falls."""
    values = w.double().flatten().tolist()
    mean = sum(values) / len(values)
    sigma = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))

    def density(v):
        return math.log(math.exp(-(((v - mean) / sigma) ** 2) / 2) / (sigma * math.sqrt(2 * math.pi)) + 1e-300)

    body = sorted(v for v in values if density(v) >= log_density)
    count = 2**bits
    bins = [body[i * len(body) // count : (i + 1) * len(body) // count] for i in range(count)]
    levels = [sum(b) / len(b) for b in bins]

    def near(v):
        return min(range(count), key=lambda i: abs(v - levels[i]))

    def error():
        return sum(abs(v - levels[near(v)]) for v in body)

    best, steps = error(), 0
    while steps < max_steps:
        before = levels
        groups = [[] for _ in levels]
        for v in body:
            groups[near(v)].append(v)
        levels = [sum(b) / len(b) if b else old for b, old in zip(groups, levels, strict=True)]
        now = error()
        if now >= best:
            levels = before
            break
        best, steps = now, steps + 1
    return levels, len(values) - len(body), steps


@pytest.mark.parametrize(("bits", "seed"), [(3, 0), (3, 1), (2, 2), (1, 3)])
def test_is_the_algorithm_written_out(bits, seed):
    w = drawn(20, 30, seed=seed)
    levels, outliers, steps = literal(w, bits)
    got = gobo(w, bits=bits)
    assert got.levels.tolist() == pytest.approx(levels, abs=1e-8)
    assert (len(got.positions), got.iterations) == (outliers, steps)
    assert steps > 0 or bits < 3  # with few levels the bins may be where it ends


def test_outliers_by_the_gaussians_density():
    w = drawn()
    normal = torch.distributions.Normal(w.double().mean(), w.double().std(correction=0))
    assert torch.equal(gobo_outliers(w), normal.log_prob(w.double()) < -4)
    assert torch.equal(gobo_outliers(w, log_density=1.0), normal.log_prob(w.double()) < 1)
    assert 6 <= int(gobo_outliers(w).sum()) < 30


def test_the_criterion_has_units():
    w = drawn(spread=0.04)
    counts = [int(gobo_outliers(factor * w).sum()) for factor in (0.1, 1, 10, 100, 545)]
    assert counts == sorted(counts) and counts[0] < counts[2] < counts[3] < counts[4]
    # Where the density at the mean itself is below e⁻⁴: 1/(σ√(2π)) < e⁻⁴, σ > 21.78.
    edge = math.exp(4) / math.sqrt(2 * math.pi)
    unit = w / float(w.double().std(correction=0))
    assert not gobo_outliers(0.999 * edge * unit).all() and gobo_outliers(1.001 * edge * unit).all()
    for sigma, z in ((0.04, 3.55), (0.095, 3.30), (1.0, 2.48)):
        assert math.sqrt(2 * (4 - math.log(sigma) - math.log(2 * math.pi) / 2)) == pytest.approx(z, abs=0.006)


@given(st.integers(1, 12), st.integers(1, 40), st.integers(1, 5), st.integers(0, 10**6))
@examples(60)
def test_outliers_come_back_and_the_body_gets_its_nearest_level(rows, columns, bits, seed):
    w = drawn(rows, columns, seed=seed)
    got = gobo(w, bits=bits)
    back, outlying = got.dequantize(), gobo_outliers(w)
    assert torch.equal(back[outlying], w[outlying])
    assert torch.equal(got.positions, outlying.flatten().nonzero()[:, 0])
    distance = (w[..., None].double() - got.levels.double()).abs()
    error = (w - back).double().abs()
    # Levels are rounded to float32 after the codes are chosen.
    assert (error[~outlying] <= distance.min(-1).values[~outlying] + 1e-7).all()
    assert (got.levels.diff() >= 0).all() and (got.codes[outlying] == 0).all()
    first = gobo(w, bits=bits, max_steps=0).dequantize()
    assert error.sum() <= (w - first).double().abs().sum() * (1 + 1e-6) + 1e-6


def test_between_the_first_bins_and_the_best_squared_error():
    w = drawn(100, 100, seed=4)
    body = w[~gobo_outliers(w)]
    squared = [float((w - gobo(w, max_steps=steps).dequantize()).double().square().sum()) for steps in (0, 1000)]
    best = lloyd_max(body, 8).distortion * len(body)
    assert best <= squared[1] < squared[0]


def test_size():
    w = drawn(40, 50)
    got = gobo(w)
    outliers = len(got.positions)
    # 2000 codes of 3 bits, 8 levels and the outliers in 32 bits, positions of 11 bits.
    assert got.nbytes == 750 + 32 + 4 * outliers + -(-11 * outliers // 8)
    assert got.bits_per_weight == got.nbytes * 8 / 2000


def test_few_and_equal_weights():
    same = torch.full((3, 4), 0.25)
    assert torch.equal(gobo(same).dequantize(), same) and len(gobo(same).positions) == 0
    few = torch.tensor([[0.1, -0.2, 0.3]])
    torch.testing.assert_close(gobo(few).dequantize(), few)
    zero = torch.zeros(2, 2)
    assert torch.equal(gobo(zero).dequantize(), zero)
    assert gobo(drawn().double()).levels.dtype == torch.float64


def test_no_body(as_user):
    with pytest.raises(ValueError, match=r"every log density is below -4\.0: the criterion has units"):
        gobo(1000 * drawn())


@pytest.mark.parametrize("options", [{"bits": 0}, {"bits": 9}, {"log_density": math.nan}, {"max_steps": -1}])
def test_bad_options(options, as_user):
    with pytest.raises(ValueError, match="must"):
        gobo(drawn(), **options)
