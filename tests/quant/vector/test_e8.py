import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.quant.vector.e8 import e8_ball, e8_ball_encode, e8_nearest, e8p_decode, e8p_encode, e8p_patterns
from tests.examples import examples


def lattice(reach):
    """All points of E8 with entries up to ``reach``, by the definition."""
    whole = torch.tensor(list(itertools.product(range(-reach, reach + 1), repeat=8)), dtype=torch.float64)
    half = torch.tensor(
        list(itertools.product([i + 0.5 for i in range(-reach, reach)], repeat=8)), dtype=torch.float64
    )
    points = torch.cat([whole, half])
    return points[points.sum(1) % 2 == 0]


@pytest.fixture(scope="module")
def points():
    return lattice(1)


@pytest.fixture(scope="module")
def entries():
    """E8P by its definition: every choice of signs with an even sum of every pattern, shifted both ways."""
    signs = torch.tensor(list(itertools.product((1.0, -1.0), repeat=8)))
    all_signed = (e8p_patterns()[:, None] * signs).reshape(-1, 8)
    even = all_signed[all_signed.sum(1) % 2 == 0]
    return torch.cat([even + 0.25, even - 0.25]).double()


def gaussian(n, seed=0, scale=1.0):
    return scale * torch.randn(n, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_shells_of_the_lattice(points):
    # The theta series of E8: 1 + 240 q² + 2160 q⁴ + …; entries up to 1 hold the first two shells.
    squares = points.square().sum(1)
    assert int((squares == 0).sum()) == 1 and int((squares == 2).sum()) == 240
    assert torch.equal(e8_nearest(points), points)


def test_nearest_lattice_point_is_that_of_brute_force(points):
    # Any point within 1/2 of 0 in each entry has its nearest lattice point within entries of 1.
    x = torch.rand(400, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 0.5
    best = torch.cdist(x, points).min(1).values
    found = e8_nearest(x)
    torch.testing.assert_close((x - found).norm(dim=1), best, rtol=1e-12, atol=1e-12)  # float64 rounding of cdist


@examples(40)
@given(seed=st.integers(0, 10_000))
def test_nearest_moves_with_the_lattice(seed):
    g = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(5, 8, generator=g, dtype=torch.float64)
    shift = e8_nearest(20 * torch.randn(8, generator=g, dtype=torch.float64))
    torch.testing.assert_close(e8_nearest(x + shift), e8_nearest(x) + shift, rtol=0, atol=1e-12)


def test_normalized_second_moment_is_the_published_one():
    # Conway and Sloane: 929/12960 = 0.07168; a cube has 1/12 = 0.0833. One point to a unit of volume.
    x = 50 * torch.rand(200_000, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moment = float((x - e8_nearest(x)).square().mean())
    assert moment == pytest.approx(929 / 12960, rel=0.003)  # standard error 0.0005


def test_patterns_are_those_of_the_definition():
    patterns = e8p_patterns()
    assert patterns.shape == (256, 8) and len(patterns.unique(dim=0)) == 256
    squares = patterns.square().sum(1)
    assert int((squares <= 10).sum()) == 227 and int((squares == 12).sum()) == 29
    assert set(patterns.unique().tolist()) == {0.5, 1.5, 2.5}


def test_all_entries_differ_and_lie_on_the_shifted_lattice(entries):
    codes = torch.arange(2**16, dtype=torch.int32)
    decoded = e8p_decode(codes)
    assert len(decoded.unique(dim=0)) == 2**16
    assert torch.equal(e8_nearest(decoded - 0.25), decoded - 0.25)  # E8 + 1/4
    assert torch.equal(torch.unique(decoded.double(), dim=0), torch.unique(entries, dim=0))
    assert torch.equal(e8p_encode(decoded), codes)


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_encoded_entry_is_the_nearest_of_all(entries, scale):
    x = gaussian(300, scale=scale)
    best = torch.cdist(x, entries).min(1).values
    torch.testing.assert_close((x - e8p_decode(e8p_encode(x))).norm(dim=1), best, rtol=1e-12, atol=1e-12)


@examples(30)
@given(seed=st.integers(0, 10_000))
def test_a_third_of_a_step_finds_the_way_back(seed):
    # Entries are √2 apart at least, so noise of norm 0.7 cannot lead to another one.
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(2**16, (50,), generator=g, dtype=torch.int32)
    noise = torch.randn(50, 8, generator=g)
    x = e8p_decode(codes) + 0.7 * noise / noise.norm(dim=1, keepdim=True)
    assert torch.equal(e8p_encode(x), codes)


def test_gaussian_error_is_far_below_that_of_four_levels_each():
    x = gaussian(20_000, seed=2)
    error = float((x - e8p_decode(e8p_encode(x * 1.03)) / 1.03).square().mean())
    # Lloyd-Max with 4 levels: 0.1175; the bound of any 2-bit code: 1/16. 20 000 vectors: standard error 0.0005.
    assert 1 / 16 < error < 0.093
    for other in (0.9, 1.15):
        assert error < float((x - e8p_decode(e8p_encode(x * other)) / other).square().mean())


def test_one_bit_codebook(points):
    ball = e8_ball()
    assert len(ball.unique(dim=0)) == 256 and ball.square().sum(1).unique().tolist() == [0, 2, 4]
    assert torch.equal(e8_nearest(ball), ball)
    x = gaussian(200)
    best = torch.cdist(x, ball.double()).min(1).values
    found = ball.double()[e8_ball_encode(x).long()]
    torch.testing.assert_close((x - found).norm(dim=1), best, rtol=1e-12, atol=1e-12)


def test_shapes_dtypes_and_arguments():
    x = gaussian(12).reshape(3, 4, 8).bfloat16()
    before = x.clone()
    assert e8p_encode(x).shape == (3, 4) and e8p_decode(e8p_encode(x)).shape == (3, 4, 8)
    assert e8_nearest(x).dtype == torch.bfloat16 and torch.equal(x, before)
    assert e8p_encode(torch.zeros(0, 8)).shape == (0,)
    assert torch.equal(e8p_encode(gaussian(5000)), torch.cat([e8p_encode(p) for p in gaussian(5000).split(7)]))


def test_bad_input(as_user):
    with pytest.raises(ValueError, match=r"x must be \(…, 8\)"):
        e8p_encode(torch.zeros(3, 7))
    with pytest.raises(ValueError, match="NaN"):
        e8_nearest(torch.full((1, 8), torch.nan))
    with pytest.raises(ValueError, match="65535"):
        e8p_decode(torch.tensor([65536], dtype=torch.int32))
    with pytest.raises(ValueError, match="x must be"):
        e8_ball_encode(torch.zeros(()))
