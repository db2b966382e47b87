import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.data import make_layer
from mlcomp.obs import hessian_incoherence, layer_hessian, weight_incoherence
from mlcomp.quant import hadamard_matrix
from mlcomp.quant.post_training.incoherence import layer_rotations, random_rotation, rotate_layer, unrotate_layer
from tests.examples import examples


def rotation(n, transform, seed=0):
    return random_rotation(n, transform=transform, generator=torch.Generator().manual_seed(seed))


def matrix(r, n):
    """V itself: its columns are the images of the unit vectors."""
    return r.apply(torch.eye(n, dtype=torch.float64)).T


@examples(30)
@given(n=st.sampled_from([1, 2, 12, 20, 28, 64, 36]), transform=st.sampled_from(["orthogonal", "hadamard"]))
def test_is_orthogonal_and_undone(n, transform):
    r = rotation(n, transform)
    v = matrix(r, n)
    torch.testing.assert_close(v @ v.T, torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-12)
    x = torch.randn(3, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(r.apply(x), x @ v.T, rtol=0, atol=1e-12)
    torch.testing.assert_close(r.undo(x), x @ v, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [7, 13, 21, 30])
def test_any_size_has_an_orthogonal_one(n):
    v = matrix(rotation(n, "orthogonal"), n)
    torch.testing.assert_close(v @ v.T, torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-12)


def test_orthogonal_is_a_permuted_kronecker_product_and_hadamard_a_signed_matrix():
    r = rotation(12, "orthogonal")
    assert r.left.shape == (3, 3) and r.right.shape == (4, 4)
    expected = torch.kron(r.left, r.right) @ torch.eye(12, dtype=torch.float64)[r.permutation]
    torch.testing.assert_close(matrix(r, 12), expected, rtol=0, atol=1e-14)
    r = rotation(12, "hadamard")
    assert set(r.signs.tolist()) <= {-1.0, 1.0}
    expected = hadamard_matrix(12).double() * r.signs.double() / 12**0.5
    torch.testing.assert_close(matrix(r, 12), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("transform", ["orthogonal", "hadamard"])
def test_a_layer_goes_there_and_back_and_its_loss_stays(transform):
    weight, x, _ = make_layer(20, 24, 60, seed=0)
    w, h = weight.double(), layer_hessian(x.double())
    u, v = layer_rotations(20, 24, transform=transform, seed=3)
    turned, h_turned = rotate_layer(w, (u, v)), rotate_layer(h, (v, v))
    torch.testing.assert_close(turned, matrix(u, 20) @ w @ matrix(v, 24).T, rtol=0, atol=1e-12)
    torch.testing.assert_close(unrotate_layer(turned, (u, v)), w, rtol=0, atol=1e-12)
    assert float(((turned @ h_turned) * turned).sum()) == pytest.approx(float(((w @ h) * w).sum()), rel=1e-12)


def test_the_seed_brings_the_rotations_back():
    one, same, other = (layer_rotations(20, 24, transform="orthogonal", seed=s)[1] for s in (5, 5, 6))
    assert torch.equal(one.left, same.left) and torch.equal(one.permutation, same.permutation)
    assert not torch.equal(one.left, other.left)


def test_mu_by_its_definition():
    d = torch.diag(torch.arange(1.0, 10.0))
    assert hessian_incoherence(d) == pytest.approx(3.0)
    v = hadamard_matrix(16).double() / 4
    h = v @ torch.diag(torch.arange(1.0, 17.0, dtype=torch.float64)) @ v.T
    assert hessian_incoherence((h + h.T) / 2) == pytest.approx(1.0, abs=1e-6)
    assert weight_incoherence(torch.ones(3, 5)) == pytest.approx(1.0)
    spike = torch.zeros(3, 5)
    spike[1, 2] = -7
    assert weight_incoherence(spike) == pytest.approx(math.sqrt(15))


@pytest.mark.parametrize("transform", ["orthogonal", "hadamard"])
def test_rotations_lower_mu_of_a_layer_with_outliers(transform):
    weight, x, _ = make_layer(96, 144, 600, seed=0, channel_sigma=1.0)
    weight[:, 5] *= 30
    weight[7, 9] = 40
    h = layer_hessian(x)
    u, v = layer_rotations(96, 144, transform=transform, seed=0)
    before = hessian_incoherence(h), weight_incoherence(weight)
    after = hessian_incoherence(rotate_layer(h.double(), (v, v))), weight_incoherence(rotate_layer(weight, (u, v)))
    # The largest of 96·144 Gaussian entries is about √(2 log n) = 4.4; one spike turned by Kronecker factors becomes
    # products of up to four of them, whose tails are longer.
    assert before[0] > 8 and before[1] > 20
    assert after[0] < 6 and after[1] < (9 if transform == "orthogonal" else 6)


def test_bad_input(as_user):
    g = torch.Generator()
    with pytest.raises(ValueError, match="transform must be one of orthogonal, hadamard"):
        random_rotation(8, transform="fourier", generator=g)
    with pytest.raises(ValueError, match="no Hadamard matrix of order 7"):
        random_rotation(7, transform="hadamard", generator=g)
    with pytest.raises(ValueError, match="zero everywhere"):
        weight_incoherence(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="symmetric"):
        hessian_incoherence(torch.ones(3, 3).triu())
    with pytest.raises(ValueError, match="NaN"):
        weight_incoherence(torch.full((2, 2), torch.nan))
