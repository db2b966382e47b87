import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from mlcomp.formats import NUMBER_FORMATS
from mlcomp.quant import Grid, fit_grid, range_grid

BITS = st.integers(1, 8)
SEED = st.integers(0, 2**31)


def weight_of(seed: int, rows: int = 4, n: int = 9, exponent: int = 0) -> torch.Tensor:
    return torch.randn(rows, n, generator=torch.Generator().manual_seed(seed)) * 10.0**exponent


@given(BITS, st.booleans(), SEED, st.integers(-30, 30))
def test_minmax_error_is_at_most_half_a_step(bits, symmetric, seed, exponent):
    weight = weight_of(seed, exponent=exponent)
    grid = fit_grid(weight, bits=bits, symmetric=symmetric)
    # The quotient w/s (up to 2^b) and the product s·q are rounded to float32: 2^b units of 2^-24 each.
    assert ((weight - grid.round(weight)).abs() <= grid.step * (0.5 + 2**bits * 2**-22)).all()


@given(BITS, st.booleans(), SEED, st.sampled_from(["minmax", "mse"]))
def test_rounding_twice_changes_nothing_and_zero_is_exact(bits, symmetric, seed, clip):
    weight = weight_of(seed)
    weight[:, 3] = 0
    grid = fit_grid(weight, bits=bits, symmetric=symmetric, clip=clip)
    rounded = grid.round(weight)
    assert torch.equal(grid.round(rounded), rounded)
    assert torch.equal(grid.decode(grid.encode(weight)), rounded)
    assert (rounded[:, 3] == 0).all()
    assert torch.equal(grid.zero, grid.zero.round()) and (grid.zero >= 0).all() and (grid.zero < 2**bits).all()


@given(BITS, st.booleans(), SEED)
def test_codes_are_the_nearest_points(bits, symmetric, seed):
    weight = weight_of(seed).double()
    grid = fit_grid(weight, bits=bits, symmetric=symmetric)
    points = (torch.arange(2**bits).double() - grid.zero) * grid.step  # (rows, points)
    nearest = (weight[..., None] - points[:, None, :]).abs().amin(-1)
    assert torch.allclose((weight - grid.round(weight)).abs(), nearest, rtol=0, atol=1e-12)


@given(BITS, st.booleans(), SEED)
def test_mse_clip_is_never_worse_than_minmax(bits, symmetric, seed):
    # Heavy tails, where clipping pays.
    weight = weight_of(seed, n=40) ** 3
    error = {
        clip: (weight - fit_grid(weight, bits=bits, symmetric=symmetric, clip=clip).round(weight)).square().sum(1)
        for clip in ("minmax", "mse")
    }
    assert (error["mse"] <= error["minmax"]).all()


def test_mse_clip_is_the_best_of_the_100_shares():
    weight = weight_of(0, rows=1, n=50).double() ** 3
    low, high = float(weight.min()), float(weight.max())
    errors = []
    for percent in range(100, 0, -1):
        a, b = low * percent / 100, high * percent / 100
        step = (b - a) / 7
        zero = round(-a / step)
        q = torch.clamp(torch.round(weight / step) + zero, 0, 7)
        errors.append(float((weight - (q - zero) * step).square().sum()))
    rounded = fit_grid(weight, bits=3, clip="mse").round(weight)
    assert float((weight - rounded).square().sum()) == pytest.approx(min(errors), rel=1e-12)
    assert min(errors) < errors[0]


SHAPES = {
    "normal": lambda w: w,
    "heavy tails": lambda w: w**5,
    "one side": lambda w: w.abs() + 1,
    "mostly zeros": lambda w: w * (w.abs() > 1),
    "tiny": lambda w: w * 1e-43,
    "two levels": lambda w: w.sign() * 3e-5,
    "one level": lambda w: torch.full_like(w, -1),
}


@pytest.mark.slow
@example(1, True, 0, "one level", None)  # the grid {−2h, 0}: its end lies a whole h outside of the range ±h
@given(BITS, st.booleans(), SEED, st.sampled_from([*SHAPES]), st.sampled_from([None, torch.float16, torch.bfloat16]))
def test_leaving_out_shares_that_cannot_win_changes_nothing(bits, symmetric, seed, shape, scale_dtype):
    # All hundred shares by the definition, where fit_grid stops as soon as the clipped part alone costs too much.
    weight = SHAPES[shape](weight_of(seed, rows=3, n=16))
    low, high = weight.amin(1, keepdim=True).clamp(max=0), weight.amax(1, keepdim=True).clamp(min=0)
    if symmetric:
        high = torch.maximum(high, -low)
        low = -high
    step, zero, least = torch.zeros(3, 1), torch.zeros(3, 1), torch.full((3, 1), torch.inf)
    for share in (1 - i / 100 for i in range(100)):
        grid = range_grid(share * low, share * high, bits=bits, symmetric=symmetric, scale_dtype=scale_dtype)
        error = (weight - grid.round(weight)).square().sum(1, keepdim=True)
        step, zero = torch.where(error < least, grid.step, step), torch.where(error < least, grid.zero, zero)
        least = torch.minimum(error, least)
    found = fit_grid(weight, bits=bits, symmetric=symmetric, clip="mse", scale_dtype=scale_dtype)
    assert torch.equal(found.step, step) and torch.equal(found.zero, zero)


def test_mse_clip_reaches_the_optimum_of_a_tensor_with_outliers():
    # 100 000 Gaussian weights and two of 40 standard deviations, in two bits: the best share is below 0.1.
    weight = weight_of(0, rows=1, n=100_000)
    weight[0, :2] = torch.tensor([40.0, -40.0])
    low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)

    def error(grid):
        return float((weight - grid.round(weight)).square().sum())

    best = min(error(range_grid(k / 500 * low, k / 500 * high, bits=2)) for k in range(10, 100, 2))
    found = error(fit_grid(weight, bits=2, clip="mse"))
    # The grid search is off by at most half a hundredth of the range.
    assert found <= 1.02 * best
    assert found < 0.5 * error(range_grid(0.2 * low, 0.2 * high, bits=2))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("clip", ["minmax", "mse"])
def test_zero_and_constant_rows(symmetric, clip):
    weight = torch.tensor([[0.0] * 5, [0.3] * 5, [-0.3] * 5])
    grid = fit_grid(weight, bits=4, symmetric=symmetric, clip=clip)
    assert grid.step[0] == 1
    rounded = grid.round(weight)
    assert (rounded[0] == 0).all()
    if symmetric:
        assert ((rounded - weight).abs() <= grid.step * 0.5001).all()
    else:
        # The one value is the end of the range: exact up to two roundings.
        assert torch.allclose(rounded, weight, rtol=3e-7, atol=0)


def test_symmetric_grid_by_hand():
    # Range [−7.5, 7.5] in 4 bits: step 1, codes 0 … 15 stand for −8 … 7.
    grid = fit_grid(torch.tensor([[7.5, -3.2, 0.0]]), bits=4, symmetric=True)
    assert grid.step.item() == 1 and grid.zero.item() == 8
    assert grid.encode(torch.tensor([[7.5, -3.2, 0.0]])).tolist() == [[15, 5, 8]]


def test_asymmetric_grid_by_hand():
    # Range [−1, 2] in 2 bits: step 1, zero code 1.
    weight = torch.tensor([[-1.0, 2.0, 0.4, 1.6]])
    grid = fit_grid(weight, bits=2)
    assert grid.step.item() == 1 and grid.zero.item() == 1
    assert grid.encode(weight).tolist() == [[0, 3, 1, 3]]
    # A row on one side of zero still has zero at an end of its range.
    assert fit_grid(torch.tensor([[3.0, 1.0]]), bits=2).zero.item() == 0
    assert fit_grid(torch.tensor([[-3.0, -1.0]]), bits=2).zero.item() == 3


@pytest.mark.parametrize("symmetric", [False, True])
def test_extreme_floats(symmetric):
    weight = torch.tensor([[1e36, -1e36, 0.0], [1e-40, -1e-41, 0.0], [1e-45, 0.0, 0.0]])
    grid = fit_grid(weight, bits=4, symmetric=symmetric)
    rounded = grid.round(weight)
    assert torch.isfinite(grid.step).all() and torch.isfinite(rounded).all()
    assert ((weight - rounded).abs() <= grid.step * 0.51).all()
    assert grid.step[2] == 1 and (rounded[2] == 0).all()


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_a_range_whose_values_would_be_infinite_is_refused(bits, as_user):
    big = torch.tensor([[0.6 * torch.finfo(torch.float32).max]])
    with pytest.raises(ValueError, match=rf"a range of {bits} bits with steps up to .* leaves torch.float32"):
        range_grid(-big, big, bits=bits)
    with pytest.raises(ValueError, match=r"weight must be at most 1e.36 in size, got 3.4e.38"):
        fit_grid(torch.tensor([[3.4e38, -3.4e38]]), bits=bits)
    assert torch.isfinite(range_grid(-big / 3, big / 3, bits=bits).round(big / 3)).all()


def test_dtypes():
    weight = weight_of(0)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        narrow = weight.to(dtype)
        grid = fit_grid(narrow, bits=4)
        assert grid.step.dtype == torch.float32
        wide = fit_grid(narrow.float(), bits=4)
        assert torch.equal(grid.step, wide.step) and torch.equal(grid.zero, wide.zero)
    assert fit_grid(weight.double(), bits=4).step.dtype == torch.float64


def test_weight_is_not_modified():
    weight = weight_of(0)
    before = weight.clone()
    grid = fit_grid(weight, bits=3, clip="mse")
    grid.round(weight), grid.encode(weight)
    assert torch.equal(weight, before) and isinstance(grid, Grid)


@given(BITS, st.booleans(), SEED, st.sampled_from([1, 2, 3, 6]), st.sampled_from(["minmax", "mse"]))
@pytest.mark.slow
def test_each_group_is_a_matrix_of_its_own(bits, symmetric, seed, group_size, clip):
    weight = weight_of(seed, rows=3, n=6)
    grid = fit_grid(weight, bits=bits, group_size=group_size, symmetric=symmetric, clip=clip)
    assert grid.step.shape == grid.zero.shape == (3, 6 // group_size)
    codes = grid.encode(weight)
    for g, part in enumerate(weight.split(group_size, dim=1)):
        columns = slice(g * group_size, (g + 1) * group_size)
        alone = fit_grid(part, bits=bits, symmetric=symmetric, clip=clip)
        assert torch.equal(grid.step[:, g], alone.step[:, 0]) and torch.equal(grid.zero[:, g], alone.zero[:, 0])
        assert torch.equal(codes[:, columns], alone.encode(part))
        assert torch.equal(grid.decode(codes)[:, columns], alone.decode(codes[:, columns]))
        own = grid.spread(6)
        assert (own.step[:, columns] == alone.step).all() and (own.zero[:, columns] == alone.zero).all()
    assert torch.equal(grid.round(weight), grid.decode(codes))


def test_codes_become_quantized_with_the_steps_as_stored():
    weight = weight_of(0, n=8)
    for scale_dtype in (None, torch.float16):
        grid = fit_grid(weight, bits=3, group_size=4, scale_dtype=scale_dtype)
        q = grid.quantized(grid.encode(weight))
        assert q.step.dtype == (scale_dtype or torch.float32) and q.group is None and not q.symmetric and q.bits == 3
        assert torch.equal(q.dequantize(), grid.round(weight))
    order = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1])
    scattered = grid.quantized(grid.encode(weight), order)
    assert torch.equal(scattered.group, order)


def lecture_formula(x: torch.Tensor, bits: int, low: float, high: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The slide, line by line: signed codes and values."""
    qmin, qmax = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    s = (high - low) / (qmax - qmin)
    q = torch.clamp(torch.round(x / s), qmin, qmax)
    return q, s * q


@given(BITS, SEED)
def test_the_lectures_symmetric_formula(bits, seed):
    weight = weight_of(seed, rows=1, n=40).double()
    top = float(weight.abs().max())
    signed, values = lecture_formula(weight, bits, -top, top)
    grid = fit_grid(weight, bits=bits, symmetric=True)
    assert torch.equal(grid.encode(weight).double() - grid.zero, signed)
    assert torch.allclose(grid.round(weight), values, rtol=1e-15, atol=0)
    # With f_min and f_max of the tensor itself, as the slide writes them, the longer side is clipped.
    low, high = float(weight.min().clamp(max=0)), float(weight.max().clamp(min=0))
    signed, values = lecture_formula(weight, bits, low, high)
    grid = range_grid(torch.tensor([[low]]).double(), torch.tensor([[high]]).double(), bits=bits, symmetric=True)
    assert torch.equal(grid.encode(weight).double() - grid.zero, signed)
    assert torch.allclose(grid.round(weight), values, rtol=1e-15, atol=0)


def test_the_slides_range_clips_a_one_sided_tensor_and_the_zero_point_does_not():
    weight = torch.linspace(0, 1.5, 16)[None]
    low, high = torch.zeros(1, 1), torch.full((1, 1), 1.5)
    slide = range_grid(low, high, bits=4, symmetric=True)
    assert slide.step.item() == pytest.approx(0.1) and slide.round(weight).max().item() == pytest.approx(0.7)
    affine = range_grid(low, high, bits=4)
    assert torch.allclose(affine.round(weight), weight, atol=1e-6)


@given(BITS, st.booleans(), SEED, st.integers(-3, 3), st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
def test_stored_steps_keep_the_error_bound(bits, symmetric, seed, exponent, dtype):
    weight = weight_of(seed, exponent=exponent)
    exact = fit_grid(weight, bits=bits, symmetric=symmetric)
    grid = fit_grid(weight, bits=bits, symmetric=symmetric, scale_dtype=dtype)
    assert grid.step.dtype == torch.float32 and torch.equal(grid.step.to(dtype).float(), grid.step)
    fmt = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]
    below = grid.step.double() - NUMBER_FORMATS[fmt].spacing(grid.step.double() * (1 - 2**-40))  # the number before
    # The least number of the dtype that is not below the exact step: one unit in the last place up, at most.
    assert (grid.step >= exact.step).all() and (below < exact.step.double()).all()
    assert ((weight - grid.round(weight)).abs() <= grid.step * (0.5 + 2**bits * 2**-22)).all()


@pytest.mark.parametrize("clip", ["minmax", "mse"])
def test_half_precision_steps_of_huge_and_tiny_rows(clip):
    tiny = fit_grid(torch.tensor([[1e-12, -1e-12], [0.0, 0.0]]), bits=4, clip=clip, scale_dtype=torch.float16)
    assert tiny.step.tolist() == [[2**-24], [1.0]] and (tiny.round(torch.zeros(2, 2)) == 0).all()
    with pytest.raises(ValueError, match=r"too large for torch\.float16"):
        fit_grid(torch.tensor([[1e7, 0.0]]), bits=4, clip=clip, scale_dtype=torch.float16)
    assert torch.isfinite(fit_grid(torch.tensor([[1e7]]), bits=4, clip=clip, scale_dtype=torch.bfloat16).step).all()


def test_range_grid_bad_input(as_user):
    one = torch.ones(1, 1)
    for low, high in ((one, 2 * one), (-2 * one, -one)):
        with pytest.raises(ValueError, match="must hold 0"):
            range_grid(low, high, bits=4)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="high holds 1 NaN or infinite"):
            range_grid(-one, bad * one, bits=4)
    with pytest.raises(ValueError, match="bits must be"):
        range_grid(-one, one, bits=0)
    for dtype in (torch.float64, torch.int8, "fp16"):
        with pytest.raises(ValueError, match="scale_dtype must be None, float32, float16, bfloat16"):
            range_grid(-one, one, bits=4, scale_dtype=dtype)
    assert range_grid(0 * one, 0 * one, bits=4).step.item() == 1


def test_bad_input(as_user):
    for bits in (0, 9, 4.0, True):
        with pytest.raises(ValueError, match="bits must be"):
            fit_grid(torch.ones(1, 2), bits=bits)
    with pytest.raises(ValueError, match="clip must be"):
        fit_grid(torch.ones(1, 2), bits=4, clip="best")
    for group_size in (0, 4, 2.0):
        with pytest.raises(ValueError, match="group_size must divide the 6 inputs"):
            fit_grid(torch.ones(1, 6), bits=4, group_size=group_size)


def test_where_squared_errors_are_too_large_for_float32_the_whole_range_is_kept():
    weight = 1e25 * torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    found, whole = (fit_grid(weight, bits=4, group_size=32, clip=clip) for clip in ("mse", "minmax"))
    assert torch.equal(found.step, whole.step) and torch.equal(found.zero, whole.zero)
