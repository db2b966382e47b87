import pytest
import torch
from scipy.linalg import hadamard

from mlcomp.quant.post_training.hadamard import hadamard_matrix, hadamard_transform, paley_order


@pytest.mark.parametrize("n", [1, 2, 4, 12, 20, 28, 36, 44, 60, 76, 108, 148, 192, 576])
def test_is_a_hadamard_matrix(n):
    h = hadamard_matrix(n)
    assert (h.abs() == 1).all() and torch.equal(h @ h.T, n * torch.eye(n))


def test_powers_of_two_are_sylvesters():
    assert torch.equal(hadamard_matrix(64), torch.from_numpy(hadamard(64)).float())


def test_orders_of_language_models():
    for n, m in [(4096, 1), (14336, 28), (5120, 20), (13824, 108), (18944, 148), (576, 36), (1536, 12), (384, 12)]:
        assert paley_order(n) == m


@pytest.mark.parametrize("n", [1, 2, 32, 12, 56, 36])
def test_transform_is_the_product(n):
    x = torch.randn(3, 2, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    h = hadamard_matrix(n).double() / n**0.5
    assert torch.allclose(hadamard_transform(x), x @ h.T, rtol=0, atol=1e-13)
    assert torch.allclose(hadamard_transform(x, transpose=True), x @ h, rtol=0, atol=1e-13)


def test_is_a_rotation_and_spreads_an_outlier():
    x = torch.zeros(1, 14336)
    x[0, 77] = 1
    y = hadamard_transform(x)
    assert torch.allclose(y.abs(), torch.full_like(y, 14336**-0.5))
    assert torch.allclose(hadamard_transform(y, transpose=True), x, atol=1e-6)
    assert hadamard_transform(x.bfloat16()).dtype == torch.bfloat16


def test_bad_input(as_user):
    for n in (0, 3, 6, 14, 172):
        with pytest.raises(ValueError, match="order"):
            hadamard_matrix(n)
    with pytest.raises(ValueError, match="no Hadamard matrix of order 10"):
        hadamard_transform(torch.zeros(2, 10))
