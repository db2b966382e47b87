import importlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.quant import blockwise, data_type_levels, double_quantize, scale_levels


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def literal(weight, size, second, data_type, scale_type):
    """The definition in float64, value by value."""
    levels, scale_table = (t.double().tolist() for t in (data_type_levels(data_type, 4), scale_levels(scale_type)))
    flat = weight.double().flatten().tolist()
    blocks = [flat[i : i + size] for i in range(0, len(flat), size)]
    scales = [max(abs(v) for v in block) for block in blocks]
    mean = sum(scales) / len(scales)
    decoded = []
    for i in range(0, len(scales), second):
        rest = [m - mean for m in scales[i : i + second]]
        largest = max(abs(r) for r in rest)
        decoded += [mean + largest * min(scale_table, key=lambda u, r=r: abs(r / (largest or 1) - u)) for r in rest]
    out = []
    for block, exact, scale in zip(blocks, scales, decoded, strict=True):
        out += [scale * min(levels, key=lambda level, v=v: abs(v / (exact or 1) - level)) for v in block]
    return torch.tensor(out, dtype=torch.float64).reshape(weight.shape)


@pytest.mark.parametrize("scale_type", ["dynamic", "int"])
@pytest.mark.parametrize(("data_type", "size", "second"), [("nf4", 4, 3), ("nf4", 64, 256), ("int", 5, 2)])
def test_equals_the_definition(data_type, size, second, scale_type):
    weight = gaussian(9, 11, seed=size)
    options = {"data_type": data_type, "block_size": size, "scale_block": second, "scale_type": scale_type}
    got = double_quantize(weight, **options).dequantize().double()
    # float32 against float64; a value at the very middle of two levels would show as a step, and none is.
    torch.testing.assert_close(
        got.double(), literal(weight, size, second, data_type, scale_type), rtol=1e-5, atol=1e-6
    )


def test_levels_of_scales_by_hand():
    dynamic = scale_levels("dynamic")
    assert len(dynamic) == 256 and int((dynamic < 0).sum()) == 127 and int((dynamic == 0).sum()) == 1
    assert bool((dynamic.diff() > 0).all()) and float(dynamic[-1]) == 1.0
    # e = 0: one part of [0.1, 1], its middle 0.55, times 1e-6; e = 1: 0.325 and 0.775, times 1e-5.
    torch.testing.assert_close(dynamic[128:131], torch.tensor([0.55e-6, 3.25e-6, 7.75e-6]))
    # e = 6: the last of 64 parts, each 0.9/64 wide, ends at 1.
    assert float(dynamic[-2]) == pytest.approx(1 - 0.9 / 128)
    torch.testing.assert_close(dynamic[:127], -dynamic[128:255].flip(0))
    assert scale_levels("int").tolist() == pytest.approx([k / 127 for k in range(-127, 128)])


def test_size_to_the_bit():
    # 4 + 8/64 + 32/(64·256) bits a weight, and 32 for the mean of the scales.
    result = double_quantize(gaussian(4096, 64))
    assert 4 + 8 / 64 + 32 / (64 * 256) == 4.126953125
    assert result.nbytes * 8 == 4.126953125 * 4096 * 64 + 32
    odd = double_quantize(gaussian(3, 5), block_size=4, scale_block=3)  # 15 codes, 4 blocks, 2 blocks of these
    assert odd.nbytes == 8 + 4 + 2 * 4 + 4 and odd.bits_per_weight == 24 * 8 / 15


def test_a_byte_has_the_first_code_in_its_high_half_and_zeros_are_0x77():
    weight = torch.tensor([[1.0, -1.0, 0.0, 0.0, 0.5]])
    stored = double_quantize(weight, block_size=2).stored()
    assert stored.tensors["codes"].tolist() == [0xF0, 0x77, 0xF7]


def test_what_double_quantization_costs_and_what_the_second_table_does():
    weight = gaussian(1024, 1024)
    exact = blockwise(weight, bits=4, block_size=64, data_type="nf4")
    single = float((weight - exact.dequantize()).square().mean())
    double = float((weight - double_quantize(weight).dequantize()).square().mean())
    # Measured on Gaussian weights before: 0.00844 and 0.00845, to three digits.
    assert single == pytest.approx(0.00844, abs=2e-5) and double == pytest.approx(0.00845, abs=2e-5)
    true = weight.reshape(-1, 64).abs().amax(1)
    error = {t: float(((double_quantize(weight, scale_type=t).scales() - true) / true).abs().mean()) for t in
             ("dynamic", "int")}  # fmt: skip
    assert error["int"] < error["dynamic"] < 0.003  # equally spaced levels suit scales, which crowd nowhere near 0


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 12), st.integers(1, 5), st.integers(0, 2**31))
def test_the_error_is_bounded(out, inp, size, second, seed):
    weight = gaussian(out, inp, seed=seed) ** 3
    result = double_quantize(weight, block_size=size, scale_block=second)
    whole = torch.nn.functional.pad(weight.reshape(-1), (0, -weight.numel() % min(size, weight.numel())))
    exact = whole.reshape(-1, min(size, weight.numel())).abs().amax(1)
    levels = data_type_levels("nf4", 4)
    half = float(levels.diff().max()) / 2
    each = (exact * half + (exact - result.scales()).abs()).repeat_interleave(min(size, weight.numel()))
    error = (weight - result.dequantize()).abs().reshape(-1)
    # Rounding in float32, of numbers up to the largest scale.
    assert bool((error <= each[: len(error)] + 1e-5 * float(exact.max())).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_zeros_and_constant_scales(dtype):
    weight = gaussian(4, 8).to(dtype)
    weight[1] = 0
    before = weight.clone()
    result = double_quantize(weight, block_size=8)
    assert torch.equal(weight, before) and result.dequantize().dtype == torch.float32
    assert bool((result.dequantize()[1] == 0).all())
    same = double_quantize(torch.eye(4, 8), block_size=8)  # all scales are 1, and nothing is left to quantize
    assert torch.equal(same.dequantize(), torch.eye(4, 8)) and same.mean == 1


def test_the_bytes_are_those_of_bitsandbytes():
    if importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    functional = importlib.import_module("bitsandbytes.functional")
    for shape in ((96, 128), (33, 65)):
        weight = 0.05 * gaussian(*shape)
        codes, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
        ours = double_quantize(weight)
        assert torch.equal(codes.reshape(-1), ours.stored().tensors["codes"])
        assert torch.equal(state.state2.absmax, ours.largest) and float(state.offset) == ours.mean
        # Its tables of 16 and of 256 levels are computed in float32.
        torch.testing.assert_close(state.code.cpu(), data_type_levels("nf4", 4), rtol=0, atol=2e-7)
        torch.testing.assert_close(state.state2.code.cpu(), scale_levels("dynamic"), rtol=0, atol=1e-7)
        # On a CPU it finds the second level by a shortcut, which now and then takes the neighbour of the nearest.
        apart = (state.absmax.int() - ours.scale_codes.int()).abs()
        assert int(apart.max()) <= 1 and float((apart > 0).float().mean()) < 0.02


def test_bad_input(as_user):
    weight = gaussian(4, 8)
    with pytest.raises(ValueError, match="data_type"):
        double_quantize(weight, data_type="quantile")
    with pytest.raises(ValueError, match="scale_type"):
        double_quantize(weight, scale_type="fp8")
    for name in ("block_size", "scale_block"):
        for value in (0, 2.5, True, None):
            with pytest.raises((ValueError, TypeError), match=name):
                double_quantize(weight, **{name: value})
    with pytest.raises(ValueError, match=r"NaN|inf"):
        double_quantize(torch.full((2, 2), torch.nan))
    with pytest.raises(ValueError, match="scale_type"):
        scale_levels("nf4")
