import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.prune import magnitude, weight_correction


def layer(seed=0, out=4, inp=12, shift=0.3):
    weight = torch.randn(out, inp, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift
    return weight, magnitude(weight, sparsity=0.6, scope="row")


def literal(dense, sparse, epsilon):
    """Eq. (5) on one row in Python floats, then the zeros put back."""
    scale = statistics.pstdev(dense) / (statistics.pstdev(sparse) + epsilon)
    scaled = [scale * v for v in sparse]
    corrected = [v + statistics.fmean(dense) - statistics.fmean(scaled) for v in scaled]
    return [c if v else 0.0 for c, v in zip(corrected, sparse, strict=True)]


@pytest.mark.parametrize("seed", range(5))
def test_is_the_formula_on_the_kept_weights(seed):
    weight, pruned = layer(seed)
    expected = [literal(w, p, 0.0) for w, p in zip(weight.tolist(), pruned.tolist(), strict=True)]
    found = weight_correction(weight, pruned, epsilon=1e-15)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_by_hand():
    """Row (−1, 1, 3, 5): mean 2, σ = √5; pruned (0, 0, 3, 5): mean 2, σ = √4.5. λ = √(10/9), shift 2 − 2λ."""
    scale = (10 / 9) ** 0.5
    weight, pruned = torch.tensor([[-1.0, 1, 3, 5]]).double(), torch.tensor([[0.0, 0, 3, 5]]).double()
    expected = torch.tensor([[0, 0, 3 * scale + 2 - 2 * scale, 5 * scale + 2 - 2 * scale]], dtype=torch.float64)
    torch.testing.assert_close(weight_correction(weight, pruned), expected, atol=1e-8, rtol=0)  # ε = 1e-9
    expected[0, 2:] = torch.tensor([3 * scale + 4 - 4 * scale, 5 * scale + 4 - 4 * scale], dtype=torch.float64)
    torch.testing.assert_close(weight_correction(weight, pruned, exact_mean=True), expected, atol=1e-8, rtol=0)


def test_before_the_zeros_are_put_back_mean_and_spread_are_the_dense_ones():
    """What the formula is made for: W_corr as printed has E(W) and σ(W); the zeros were then at the constant."""
    weight, pruned = layer()
    found = weight_correction(weight, pruned, epsilon=1e-15)
    scale = weight.std(1, correction=0, keepdim=True) / pruned.std(1, correction=0, keepdim=True)
    constant = weight.mean(1, keepdim=True) - (scale * pruned).mean(1, keepdim=True)
    printed = torch.where(pruned != 0, found, constant)
    torch.testing.assert_close(printed.mean(1), weight.mean(1))
    torch.testing.assert_close(printed.std(1), weight.std(1))


@given(st.integers(0, 2**31), st.floats(0, 1), st.floats(-3, 3))
def test_means_on_the_kept_weights(seed, sparsity, offset):
    weight, _ = layer(seed, shift=offset)
    pruned = magnitude(weight, sparsity=sparsity, scope="row")
    share = (pruned != 0).double().mean(1)
    exact = weight_correction(weight, pruned, exact_mean=True)
    assert ((exact == 0) >= (pruned == 0)).all()
    alive = share > 0
    torch.testing.assert_close(exact.mean(1)[alive], weight.mean(1)[alive], atol=1e-12, rtol=1e-12)
    # The literal version closes the share p of the gap between E(λWˢ) and E(W).
    scale = weight.std(1, correction=0) / pruned.std(1, correction=0).clamp(min=1e-30)
    left = (scale * pruned.mean(1))[alive]
    expected = left + share[alive] * (weight.mean(1)[alive] - left)
    found = weight_correction(weight, pruned, epsilon=1e-14).mean(1)[alive]
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("exact_mean", [False, True])
def test_nothing_pruned_nothing_changed_and_all_pruned_stays_zero(exact_mean):
    weight, _ = layer()
    torch.testing.assert_close(weight_correction(weight, weight, exact_mean=exact_mean), weight, atol=1e-8, rtol=1e-8)
    assert not weight_correction(weight, torch.zeros_like(weight), exact_mean=exact_mean).any()
    constant = torch.full((2, 4), 3.0)
    assert torch.equal(weight_correction(constant, constant, exact_mean=exact_mean), constant)
    half = torch.tensor([[3.0, 3, 0, 0], [3, 0, 0, 0]])
    made = weight_correction(constant, half, exact_mean=exact_mean)
    assert (made[half == 0] == 0).all() and (exact_mean or torch.equal(made, half))
    assert not weight_correction(torch.zeros(2, 3), torch.zeros(2, 3), exact_mean=exact_mean).any()
    one = torch.tensor([[2.0], [-1.0]])  # a single input has no spread
    assert torch.equal(weight_correction(one, one * one.gt(0), exact_mean=exact_mean), one * one.gt(0))


@pytest.mark.parametrize("factor", [1e-30, -2.0, 1e20])
def test_units_do_not_matter(factor):
    weight, pruned = layer()
    for exact_mean in (False, True):
        expected = factor * weight_correction(weight, pruned, exact_mean=exact_mean)
        torch.testing.assert_close(
            weight_correction(factor * weight, factor * pruned, exact_mean=exact_mean), expected, atol=0, rtol=1e-10
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtype_is_kept_and_rounded_once(dtype):
    weight, pruned = (t.to(dtype) for t in layer())
    expected = weight_correction(weight.double(), pruned.double()).to(dtype)
    assert torch.equal(weight_correction(weight, pruned), expected)


def test_bad_input(as_user):
    weight, pruned = layer()
    with pytest.raises(ValueError, match="pruned must be"):
        weight_correction(weight, pruned[:2])
    with pytest.raises(ValueError, match="pruned holds"):
        weight_correction(weight, pruned / 0)
    with pytest.raises(ValueError, match="weight holds"):
        weight_correction(weight * float("nan"), pruned)
    with pytest.raises(ValueError, match="non-empty matrix"):
        weight_correction(weight[0], pruned[0])
    for epsilon in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="epsilon must be positive"):
            weight_correction(weight, pruned, epsilon=epsilon)
