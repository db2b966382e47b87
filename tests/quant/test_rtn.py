import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.data import make_layer
from mlcomp.metrics import relative_error
from mlcomp.quant import rtn

GROUPS = st.sampled_from([None, 1, 2, 3, 6, 12])


@given(st.integers(1, 8), GROUPS, st.booleans(), st.integers(0, 2**31))
def test_error_is_at_most_half_a_step(bits, group_size, symmetric, seed):
    weight = torch.randn(5, 12, generator=torch.Generator().manual_seed(seed))
    q = rtn(weight, bits=bits, group_size=group_size, symmetric=symmetric)
    groups = 12 // (group_size or 12)
    assert q.step.shape == (5, groups) and int(q.codes.max()) < 2**bits
    step = q.step.repeat_interleave(12 // groups, dim=1)
    # The slack is float32 rounding of w/s and of s·q, 2^b units of 2^-24 each.
    assert ((weight - q.dequantize()).abs() <= step * (0.5 + 2**bits * 2**-22)).all()


@pytest.mark.parametrize("group_size", [None, 4, 6])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [1, 3, 8])
def test_a_group_is_a_matrix_of_its_own(bits, group_size, symmetric):
    weight = torch.randn(2, 12, generator=torch.Generator().manual_seed(bits))
    whole = rtn(weight, bits=bits, group_size=group_size, symmetric=symmetric, clip="mse").dequantize()
    width = group_size or 12
    for row in range(2):
        for start in range(0, 12, width):
            part = weight[row : row + 1, start : start + width]
            alone = rtn(part, bits=bits, symmetric=symmetric, clip="mse", per_tensor=True).dequantize()
            assert torch.equal(whole[row : row + 1, start : start + width], alone)


@pytest.mark.parametrize(("bits", "error"), [(4, 0.0121), (3, 0.0546), (2, 0.2864)])
def test_errors_of_public_code_on_the_synthetic_layer(bits, error):
    weight, x, _ = make_layer(256, 256, 2048, seed=0)
    assert relative_error(weight, rtn(weight, bits=bits).dequantize(), x) == pytest.approx(error, abs=5e-5)


def test_finer_grids_are_better_and_dearer():
    weight, x, _ = make_layer(64, 64, 256, seed=0)
    options = ({"per_tensor": True}, {}, {"group_size": 16}, {"group_size": 4})
    results = [rtn(weight, bits=4, **o) for o in options]
    errors = [relative_error(weight, q.dequantize(), x) for q in results]
    sizes = [q.nbytes for q in results]
    assert errors == sorted(errors, reverse=True) and sizes == sorted(sizes)


@pytest.mark.parametrize(
    ("options", "grids"),
    [({}, 16), ({"per_tensor": True}, 1), ({"group_size": 8}, 64), ({"group_size": 4, "symmetric": True}, 128)],
)
@pytest.mark.parametrize(
    ("dtype", "width"), [(torch.float16, 16), (torch.bfloat16, 16), (torch.float32, 32), (None, 32)]
)
def test_steps_are_stored_and_counted_in_their_dtype(options, grids, dtype, width):
    weight = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    q = rtn(weight, bits=4, scale_dtype=dtype, **options)
    assert q.step.dtype == (dtype or torch.float32) and q.dequantize().dtype == torch.float32
    assert q.step.numel() == grids
    zero = 0 if q.symmetric else 4
    assert q.bits_per_weight == pytest.approx(4 + grids * (width + zero) / weight.numel(), abs=8 / weight.numel())
    # Decoding in float64 from what is stored gives the same values, to float32's rounding.
    index = torch.arange(32) // (32 // q.step.shape[1])
    exact = (q.codes.double() - q.zero.double()[:, index]) * q.step.double()[:, index]
    assert torch.allclose(q.dequantize().double(), exact, rtol=2**-23, atol=0)
    # The codes are the nearest of the stored grid: the bound is half a stored step.
    assert ((weight - q.dequantize()).abs() <= q.step.float()[:, index] * 0.5001).all()


def test_half_precision_steps_cost_little():
    weight, x, _ = make_layer(64, 64, 256, seed=0)
    for bits in (2, 4):
        error = [
            relative_error(weight, rtn(weight, bits=bits, group_size=16, scale_dtype=d).dequantize(), x)
            for d in (torch.float32, torch.float16)
        ]
        # A step is at most 2^-10 of itself too large.
        assert error[1] <= 1.01 * error[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_zero_rows_and_purity(dtype):
    weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[1] = 0
    before = weight.clone()
    q = rtn(weight, bits=3, group_size=4)
    assert torch.equal(weight, before)
    assert q.step.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (q.dequantize()[1] == 0).all() and torch.isfinite(q.dequantize()).all()
    wide = rtn(weight.float() if dtype != torch.float64 else weight, bits=3, group_size=4)
    assert torch.equal(wide.codes, q.codes) and torch.equal(wide.step, q.step)


def test_bad_input(as_user):
    weight = torch.ones(2, 6)
    for bits in (0, 9, 3.0, None):
        with pytest.raises(ValueError, match="bits must be"):
            rtn(weight, bits=bits)
    for group_size in (4, 0, -1, 7):
        with pytest.raises(ValueError, match="group_size must divide"):
            rtn(weight, bits=4, group_size=group_size)
    with pytest.raises(ValueError, match="per_tensor"):
        rtn(weight, bits=4, group_size=3, per_tensor=True)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="NaN or infinite"):
            rtn(torch.tensor([[1.0, bad]]), bits=4)
    for shape in ((6,), (0, 6), (2, 3, 1)):
        with pytest.raises(ValueError, match="non-empty matrix"):
            rtn(torch.ones(shape), bits=4)
    with pytest.raises(TypeError, match="floating point"):
        rtn(torch.ones(2, 2, dtype=torch.int32), bits=4)
    with pytest.raises(ValueError, match="clip must be"):
        rtn(weight, bits=4, clip="mse2")
