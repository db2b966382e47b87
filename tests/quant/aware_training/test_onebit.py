import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.data import make_layer
from mlcomp.quant import onebit_decompose


def random(out, inp, seed):
    return torch.randn(out, inp, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def best_rank_one(magnitude):
    u, s, v = torch.linalg.svd(magnitude.double())
    return s[0] * u[:, :1] * v[:1]


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31))
def test_the_magnitudes_are_the_nearest_of_rank_one(out, inp, seed):
    """By singular value decomposition; signs are those of the weight."""
    weight = random(out, inp, seed)
    result = onebit_decompose(weight, dtype=torch.float32, max_steps=1000)
    value = result.dequantize().double()
    assert torch.equal(value.sign(), weight.sign())
    error, best = (value - weight).norm(), (best_rank_one(weight.abs()) - weight.abs()).norm()
    # The stored vectors are float32, and each entry of the product has two rounded factors.
    assert error <= best + 3e-7 * weight.norm()
    assert (result.rows >= 0).all() and (result.columns >= 0).all()


def test_it_is_the_nonnegative_factorization_too():
    decomposition = pytest.importorskip("sklearn.decomposition")
    weight = random(20, 12, seed=3)
    nmf = decomposition.NMF(1, init="random", random_state=0, tol=1e-8)
    found = torch.from_numpy(nmf.fit_transform(weight.abs().numpy()) @ nmf.components_)
    # The sizes of NMF's last step and of float32's rounding.
    assert torch.allclose(onebit_decompose(weight, dtype=torch.float32).dequantize().abs().double(), found, atol=1e-6)


def test_a_matrix_of_that_form_is_exact_and_the_product_needs_no_decoded_weight():
    g, h = torch.rand(5) + 0.5, torch.rand(7) + 0.5
    signs = (random(5, 7, seed=1) > 0).double() * 2 - 1
    weight = signs * g[:, None] * h
    result = onebit_decompose(weight, dtype=torch.float32)
    torch.testing.assert_close(result.dequantize().double(), weight, rtol=1e-6, atol=0)
    x = random(1, 7, seed=2)[0].float()
    y = result.rows * ((2.0 * result.signs - 1) @ (result.columns * x))
    torch.testing.assert_close(y, result.dequantize() @ x)


def test_the_error_of_gaussian_weights_is_known():
    """|w| of a Gaussian has the mean √(2/π): with equal scales 1 − 2/π of the energy is lost."""
    weight = random(600, 600, seed=0)
    error = (onebit_decompose(weight).dequantize().double() - weight).square().sum() / weight.square().sum()
    # A finite matrix loses a little less: 1200 of its 360 000 numbers are free. float16 adds nothing visible.
    assert 1 - 2 / torch.pi - 0.005 < float(error) < 1 - 2 / torch.pi + 0.002


def test_signs_and_values_beat_the_rank_one_of_the_weight_itself():
    weight, _, _ = make_layer(64, 48, 8, seed=0)
    error = (onebit_decompose(weight).dequantize() - weight).norm()
    assert error < 0.7 * (best_rank_one(weight) - weight).norm()


def test_size_is_one_bit_and_two_vectors():
    result = onebit_decompose(random(64, 32, seed=0))
    assert result.nbytes == 64 * 32 // 8 + 2 * (64 + 32)
    assert result.bits_per_weight == 1 + 16 * (64 + 32) / (64 * 32)


def test_zeros():
    weight = random(4, 6, seed=0)
    weight[1], weight[:, 2], weight[0, 0] = 0, 0, 0
    result = onebit_decompose(weight)
    value = result.dequantize()
    assert (value[1] == 0).all() and (value[:, 2] == 0).all() and result.signs[0, 0] == 1 and value[0, 0] > 0
    assert (onebit_decompose(torch.zeros(3, 5)).dequantize() == 0).all()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_scale_of_the_weight_does_not_matter(scale):
    weight = random(6, 5, seed=4)
    value, scaled = (onebit_decompose(w, dtype=torch.float32).dequantize() for w in (weight, scale * weight))
    torch.testing.assert_close(scaled / scale, value)


def test_bad_input(as_user):
    weight = torch.ones(2, 3)
    for bad, words in ((torch.full((2, 3), torch.nan), "NaN"), (torch.ones(3), "matrix"), (1e-12 * weight, "digits")):
        with pytest.raises(ValueError, match=words):
            onebit_decompose(bad)
    with pytest.raises(ValueError, match="max_steps"):
        onebit_decompose(weight, max_steps=0)
    with pytest.raises(TypeError, match="dtype"):
        onebit_decompose(weight, dtype=torch.int8)
    with pytest.raises(ValueError, match="wider dtype"):
        onebit_decompose(1e12 * weight)
