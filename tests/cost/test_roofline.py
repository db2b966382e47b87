import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.cost import (
    A100,
    H100,
    T4,
    TURING_RATIOS,
    balance_tokens,
    layer_energy,
    layer_nbytes,
    layer_time,
    peak_rate,
)
from mlcomp.formats import NUMBER_FORMATS, sparse_nbytes

SIZES = st.integers(1, 64).map(lambda n: 4 * n)


def test_a_layer_by_hand():
    # 4096 × 4096 in fp16, one token: 2·4096² = 33 554 432 operations, 33 554 432 + 2·8192 bytes.
    time = layer_time((4096, 4096), 1, chip=A100, weight="fp16")
    assert time.compute == pytest.approx(33_554_432 / 312e12)
    assert time.memory == pytest.approx(33_570_816 / 2.039e12)
    assert time.bound == "memory" and time.total == time.memory
    # 4096 tokens: 4096 times the operations, 3 · 2 · 4096² bytes.
    time = layer_time((4096, 4096), 4096, chip=A100, weight="fp16")
    assert time.compute == pytest.approx(2 * 4096**3 / 312e12)
    assert time.memory == pytest.approx(6 * 4096**2 / 2.039e12)
    assert time.bound == "compute" and time.total == time.compute


def test_bytes_by_hand():
    # Weight 8 × 16 in int4 with 8 fp16 scales: 64 + 16; activations fp16, 3 tokens: 3·16·2 and 3·8·2.
    nbytes = layer_nbytes((8, 16), 3, weight="int4", activation="fp16", extra_nbytes=16)
    assert (nbytes.weight, nbytes.inputs, nbytes.outputs, nbytes.total) == (80, 96, 48, 224)
    # tf32 is stored as fp32.
    assert layer_nbytes((8, 16), 3, weight="tf32") == layer_nbytes((8, 16), 3, weight="fp32")
    # Half a byte of one token is a whole one.
    assert layer_nbytes((8, 3), 1, weight="int4").inputs == 2


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"storage": "bitmask", "sparsity": 0.75}, 32),
        ({"storage": "csr", "sparsity": 0.75, "index_bits": 16}, 32),
        ({"storage": "n:m", "pattern": (2, 4)}, 64),
        ({"storage": "csr"}, 128),
    ],
)
def test_sparse_bytes_are_those_of_storage(options, kept):
    stored = sparse_nbytes(
        (8, 16),
        kept,
        format=options["storage"],
        value_bits=16,
        pattern=options.get("pattern"),
        index_bits=options.get("index_bits", 32),
    )
    assert layer_nbytes((8, 16), 1, weight="fp16", **options).weight == stored


@pytest.mark.parametrize("name", TURING_RATIOS)
def test_the_lectures_throughput_table(name):
    ratio = TURING_RATIOS[name]
    # Compute-bound (a large product): the speed-up over fp32 is the table's "math". 8.1, 65, 130 and 260 of the T4's
    # data sheet are rounded to two or three digits: 65/8.1 = 8.02.
    large = {f: layer_time((4096, 4096), 10**6, chip=T4, weight=f).compute for f in ("fp32", name)}
    assert large["fp32"] / large[name] == pytest.approx(ratio.math, rel=0.004)
    # Memory-bound (one token): the table's bandwidth.
    small = {f: layer_time((4096, 4096), 1, chip=T4, weight=f) for f in ("fp32", name)}
    assert all(time.bound == "memory" for time in small.values())
    assert small["fp32"].total / small[name].total == pytest.approx(ratio.bandwidth, rel=1e-12)


def test_the_lectures_energy_table():
    energy = {f: layer_energy((10, 10), 10, weight=f).compute for f in ("int8", "fp16", "int32", "fp32")}
    # 1000 multiply-adds at add + mul of the slide, [pJ].
    assert energy["int8"] == pytest.approx(1000 * 0.23e-12)
    assert energy["fp16"] == pytest.approx(1000 * 1.5e-12)
    assert energy["int32"] == pytest.approx(1000 * 3.2e-12)
    assert energy["fp32"] == pytest.approx(1000 * 4.6e-12)
    assert energy["fp32"] / energy["int8"] == pytest.approx(20)
    # With 32-bit sums: 0.2 + 0.1.
    assert layer_energy((10, 10), 10, weight="int8", accumulate="int32").compute == pytest.approx(0.3e-9)


def test_energy_of_memory_by_hand():
    # 100 weights, 10 inputs, 10 outputs of 1 byte; 1.3 nJ per 8 bytes.
    assert layer_energy((10, 10), 1, weight="int8").memory == pytest.approx(120 / 8 * 1.3e-9)
    energy = layer_energy((10, 10), 1, weight="int8")
    assert energy.total == energy.compute + energy.memory


def test_zeros_skipped_save_their_share_of_the_arithmetic():
    full = layer_energy((8, 8), 4, weight="fp16").compute
    cases = (
        ({"storage": "n:m", "pattern": (2, 4)}, 0.5),
        ({"storage": "bitmask", "sparsity": 0.75}, 0.25),
        ({}, 1.0),
    )
    for options, density in cases:
        assert layer_energy((8, 8), 4, weight="fp16", skip_zeros=True, **options).compute == pytest.approx(
            density * full
        )
        assert layer_energy((8, 8), 4, weight="fp16", **options).compute == full


def test_sparse_tensor_cores_of_the_lecture():
    assert peak_rate(A100, "fp16") == 312e12 and peak_rate(A100, "fp16", pattern=(2, 4)) == 624e12
    assert peak_rate(A100, "int8") == 624e12 and peak_rate(A100, "int8", pattern=(2, 4)) == 1248e12
    for chip in (A100, H100):
        for name, sparse in chip.peak_2_4.items():
            # The white papers round: 989.4 and 1978.9.
            assert sparse / chip.peak[name] == pytest.approx(2, rel=1e-4)
    # Other patterns, and chips without sparse tensor cores, gain bytes alone.
    assert peak_rate(A100, "fp16", pattern=(4, 8)) == 312e12
    assert peak_rate(T4, "fp16", pattern=(2, 4)) == 65e12
    assert peak_rate(A100, "fp32", pattern=(2, 4)) == 19.5e12


def test_when_sparsity_pays():
    shape, two_four = (4096, 4096), {"storage": "n:m", "pattern": (2, 4)}
    half, most = ({"storage": "bitmask", "sparsity": s} for s in (0.5, 0.9))

    def gain(tokens, **options):
        dense = layer_time(shape, tokens, chip=A100, weight="fp16").total
        return dense / layer_time(shape, tokens, chip=A100, weight="fp16", **options).total

    # One token waits for memory. 2:4 keeps 9/16 of the bytes; a bitmask 1/16 + density.
    assert gain(1, **two_four) == pytest.approx(16 / 9, rel=1e-3)
    assert gain(1, **half) == pytest.approx(16 / 9, rel=1e-3)
    assert gain(1, **most) == pytest.approx(1 / (0.1 + 1 / 16), rel=5e-3)
    # CSR with 32-bit indices stores 48 bits for each kept weight: at 50 % it is 1.5 times dense.
    assert gain(1, storage="csr", sparsity=0.5) == pytest.approx(1 / 1.5, rel=1e-3)
    # 4096 tokens wait for arithmetic: only 2:4 is faster, and twice so.
    assert gain(4096, **two_four) == pytest.approx(2)
    assert gain(4096, **half) == gain(4096, **most) == 1


@given(SIZES, SIZES, st.sampled_from(["fp16", "int8"]), st.sampled_from([{}, {"storage": "n:m", "pattern": (2, 4)}]))
def test_balance_is_where_the_bounds_cross(out, inp, name, options):
    tokens = balance_tokens((out, inp), chip=A100, weight=name, **options)
    if math.isinf(tokens):
        assert layer_time((out, inp), 10**6, chip=A100, weight=name, **options).bound == "memory"
        return
    below, above = math.floor(tokens), math.ceil(tokens + 1e-9)
    if below:
        time = layer_time((out, inp), below, chip=A100, weight=name, **options)
        assert time.compute <= time.memory * (1 + 1e-9)
    time = layer_time((out, inp), above, chip=A100, weight=name, **options)
    assert time.compute >= time.memory * (1 - 1e-9)


def test_balance_of_a_large_layer_is_peak_over_bandwidth():
    # Wide layers: T ≈ P·bytes per value / (2·B), and the activations add to it. fp16 on the A100: 153 and more.
    assert balance_tokens((10**6, 10**6), chip=A100, weight="fp16") == pytest.approx(312e12 / 2.039e12, rel=1e-3)
    # Four-bit weights need a quarter of the tokens, computed in fp16 all the same.
    four = balance_tokens((10**6, 10**6), chip=A100, weight="int4", activation="fp16")
    assert four == pytest.approx(312e12 / 2.039e12 / 4, rel=1e-3)
    # A single column has one operation pair for each output written: memory-bound for ever.
    assert balance_tokens((64, 1), chip=A100, weight="fp16") == math.inf


def test_weight_only_quantization_computes_in_the_activations_format():
    mixed = layer_time((512, 512), 10**5, chip=A100, weight="int4", activation="fp16")
    assert mixed.compute == layer_time((512, 512), 10**5, chip=A100, weight="fp16").compute
    nbytes = layer_nbytes((512, 512), 1, weight="int4", activation="fp16")
    assert nbytes.weight == 512 * 512 // 2


@pytest.mark.parametrize("chip", [T4, A100, H100], ids=lambda c: c.name)
def test_formats_of_the_chips_exist(chip):
    assert set(chip.peak) <= set(NUMBER_FORMATS) and set(chip.peak_2_4) <= set(chip.peak)


def test_bad_input(as_user):
    shape, good = (8, 8), {"chip": A100, "weight": "fp16"}
    for options, message in (
        ({"weight": "fp12"}, "format must be one of"),
        ({"activation": "half"}, "format must be one of"),
        ({"weight": "fp32", "activation": "fp16"}, "rounded"),
        ({"weight": "bf16", "activation": "fp16"}, "rounded"),
        ({"extra_nbytes": -1}, "extra_nbytes"),
        ({"sparsity": 0.5}, "sparsity belongs"),
        ({"sparsity": 1.5, "storage": "csr"}, "lie in"),
        ({"storage": "n:m"}, "pattern belongs"),
        ({"pattern": (2, 4)}, "pattern belongs"),
        ({"pattern": (5, 4), "storage": "n:m"}, "pattern must be"),
        ({"storage": "coo"}, "format must be one of"),
        ({"weight": "fp8_e4m3"}, "does not compute"),
    ):
        with pytest.raises(ValueError, match=message):
            layer_time(shape, 1, **{**good, **options})
        with pytest.raises(ValueError, match=message):
            balance_tokens(shape, **{**good, **options})
    for tokens in (0, -1):
        with pytest.raises(ValueError, match="tokens must be"):
            layer_time(shape, tokens, **good)
    with pytest.raises(ValueError, match="no figure for 'bf16'"):
        layer_energy(shape, 1, weight="bf16")
    with pytest.raises(ValueError, match="no figure for 'int4'"):
        layer_energy(shape, 1, weight="int8", accumulate="int4")
    with pytest.raises(ValueError, match="nnz must be"):
        layer_time((0, 8), 1, **good)
