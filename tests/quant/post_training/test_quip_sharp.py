import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.data import make_layer
from mlcomp.metrics import hessian_error, relative_error
from mlcomp.obs import gptq, layer_hessian, quip, quip_sharp
from mlcomp.quant import hadamard_matrix
from mlcomp.quant.post_training.quip_sharp import SCALES, STAGE_BITS, decode_vectors, encode_vectors
from mlcomp.quant.vector.e8 import e8_ball, e8p_decode
from tests.examples import examples


def small(out=12, inp=24, samples=60, seed=0):
    weight, x, _ = make_layer(out, inp, samples, seed=seed)
    return weight, x, layer_hessian(x)


def literal_quip_sharp(weight, hessian, *, seed, damp=0.01):
    """2 bits, with dense matrices: conditional means for the decomposition, all 2¹⁶ entries for the search."""
    w, h = weight.double(), hessian.double()
    h = h + damp * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype)
    g = torch.Generator().manual_seed(seed)
    u, v = (
        hadamard_matrix(n).double() @ torch.diag(2.0 * torch.randint(2, (n,), generator=g) - 1).double() / n**0.5
        for n in w.shape
    )
    w_bar, h_bar = u @ w @ v.T, v @ h @ v.T
    scale = w_bar.square().mean().sqrt() / 1.03
    entries = e8p_decode(torch.arange(2**16, dtype=torch.int32)).double() * scale
    inp = w.shape[1]
    done = torch.zeros_like(w_bar)
    for k in range(0, inp, 8):
        # The best values of all columns from k on, given the errors of those before it (GPTQ's view).
        error = done[:, :k] - w_bar[:, :k]
        goal = w_bar[:, k:] - (torch.linalg.solve(h_bar[k:, k:], h_bar[k:, :k]) @ error.T).T
        nearest = torch.cdist(goal[:, :8].contiguous(), entries).argmin(1)
        done[:, k : k + 8] = entries[nearest]
    return u.T @ done @ v


@examples(5)
@given(seed=st.integers(0, 1000))
def test_is_the_literal_algorithm(seed):
    weight, _, h = small(seed=seed)
    q = quip_sharp(weight, h, bits=2, seed=seed)
    torch.testing.assert_close(q.dequantize(), literal_quip_sharp(weight, h, seed=seed).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.slow
def test_beats_quip_which_beats_gptq(bits):
    weight, x, _ = make_layer(256, 256, 2048, seed=0)
    h = layer_hessian(x)
    vector = relative_error(weight, quip_sharp(weight, h, bits=bits).dequantize(), x)
    scalar = relative_error(weight, quip(weight, h, bits=bits, transform="hadamard").dequantize(), x)
    plain = relative_error(weight, gptq(weight, h, bits=bits).dequantize(), x)
    assert vector < 0.75 * min(scalar, plain)
    assert vector < {2: 0.034, 3: 0.0105, 4: 0.0032}[bits]  # as measured, with a margin


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_scales_are_the_best_for_gaussian_weights(bits):
    x = torch.randn(8_000, 8, generator=torch.Generator().manual_seed(1))

    def error(scale):
        return float((x - decode_vectors(*encode_vectors(x * scale, bits), bits) / scale).square().mean())

    found = error(SCALES[bits][0])
    # Published errors of uniform quantization at its best step: 0.1188, 0.0374, 0.0115 (Max 1960).
    assert found < {2: 0.0935, 3: 0.0305, 4: 0.0086}[bits]
    assert found < error(0.85 * SCALES[bits][0]) and found < error(1.2 * SCALES[bits][0])


def test_stages_add_up():
    x = 2 * torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    for bits in (2, 3, 4):
        first, second = encode_vectors(x, bits)
        values = decode_vectors(first, second, bits)
        if bits == 2:
            assert second is None and torch.equal(values, e8p_decode(first))
            continue
        left = values - e8p_decode(first)
        table = e8_ball() if bits == 3 else e8p_decode(torch.arange(2**16, dtype=torch.int32))
        # float32: subtracting what was added
        torch.testing.assert_close(left, table[second.long()] / SCALES[bits][1], rtol=0, atol=1e-5)
        assert int(second.max()) < 2 ** STAGE_BITS[bits][1]


def test_size_is_to_the_bit():
    weight, _, h = small(out=12, inp=24)
    for bits in (2, 3, 4):
        q = quip_sharp(weight, h, bits=bits)
        assert q.nbytes == 12 * 24 * bits / 8 + 4 + 8
        assert q.bits_per_weight == 8 * q.nbytes / 288
        assert q.dequantize().shape == (12, 24) and q.dequantize().dtype == torch.float32


def test_any_size_with_the_orthogonal_transform():
    weight, _, h = small(out=7, inp=40, samples=100)
    assert hessian_error(weight, quip_sharp(weight, h, bits=3, transform="orthogonal").dequantize(), h) < 0.02


def test_dead_inputs_do_no_harm():
    weight, x, _ = make_layer(64, 96, 600, seed=0)
    x[[3, 10]] = 0
    h = layer_hessian(x)
    loud = weight.clone()
    loud[:, [3, 10]] *= 1000
    assert torch.equal(quip_sharp(loud, h, bits=2).codes, quip_sharp(weight, h, bits=2).codes)
    assert hessian_error(loud, quip_sharp(loud, h, bits=2).dequantize(), h) < 0.08


@examples(10)
@given(seed=st.integers(0, 1000), power=st.integers(-10, 10))
def test_scales_do_not_matter(seed, power):
    weight, x, h = small(seed=seed)
    q = quip_sharp(weight, h, bits=2)
    assert torch.equal(quip_sharp(weight, layer_hessian(x * 2.0**power), bits=2).codes, q.codes)
    assert torch.equal(quip_sharp(weight * 2.0**power, h, bits=2).codes, q.codes)


def test_zero_weight_arguments_and_seeds():
    weight, _, h = small()
    assert torch.equal(quip_sharp(torch.zeros(12, 24), h, bits=2).dequantize(), torch.zeros(12, 24))
    before = weight.clone(), h.clone()
    one, same, other = (quip_sharp(weight.bfloat16(), h, bits=2, seed=s) for s in (0, 0, 1))
    assert torch.equal(one.codes, same.codes) and not torch.equal(one.codes, other.codes)
    quip_sharp(weight, h, bits=3, block_size=8)
    assert torch.equal(weight, before[0]) and torch.equal(h, before[1])
    blocks = [quip_sharp(weight, h, bits=2, block_size=b).codes for b in (1, 8, 20, 100)]
    assert all(torch.equal(b, blocks[0]) for b in blocks)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 1}, "bits must be a whole number from 2 to 4"),
        ({"bits": True}, "bits must be a whole number from 2 to 4"),
        ({"transform": "fourier"}, "transform must be one of"),
        ({"weight": torch.ones(7, 24)}, "no Hadamard matrix of order 7"),
        ({"weight": torch.ones(12, 20), "hessian": torch.eye(20)}, "multiple of 8"),
        ({"damp": -1.0}, "damp"),
        ({"block_size": 0}, "block_size"),
        ({"weight": torch.full((12, 24), torch.nan)}, "NaN"),
        ({"hessian": torch.eye(23)}, "24 inputs"),
        ({"hessian": torch.ones(24, 24), "damp": 0.0}, "singular"),
    ],
)
def test_bad_input_is_a_clear_error(as_user, change, message):
    weight, _, h = small()
    arguments = {"weight": weight, "hessian": h, "bits": 2, **change}
    with pytest.raises(ValueError, match=message):
        quip_sharp(arguments.pop("weight"), arguments.pop("hessian"), **arguments)
