import pytest
import torch

from mlcomp.kernels.exact_obs import exact_obs
from mlcomp.obs import exact_obs as reference
from mlcomp.obs import layer_hessian


def layer(random, out, inp, samples=None):
    scale = torch.exp(random(inp, 1, seed=2) / 2)  # inputs of different strength
    mix = torch.eye(inp, device=scale.device) + 0.3 * random(inp, inp, seed=3)
    return random(out, inp), layer_hessian((scale * (mix @ random(inp, samples or 3 * inp, seed=1))).double())


def loss(weight, pruned, hessian):
    delta = (pruned - weight).double()
    return 0.5 * torch.einsum("oi,ij,oj->o", delta, hessian, delta)


@pytest.mark.parametrize(("out", "inp", "sparsity"), [(5, 7, 0.5), (2, 37, 0.6), (1, 33, 1.0), (3, 16, 0.0)])
def test_equals_the_reference(random, out, inp, sparsity):
    weight, hessian = layer(random, out, inp)
    for options in ({}, {"scope": "row"}, {"row_cap": min(1.0, sparsity + 0.2)}):
        got, want = (f(weight.double(), hessian, sparsity=sparsity, **options) for f in (exact_obs, reference))
        assert torch.equal(got != 0, want != 0)
        assert torch.allclose(got, want, rtol=0, atol=1e-9)  # float64 at a condition up to 1e8


def test_rows_share_the_total_by_default_and_a_cap_bounds_each(random):
    weight, hessian = layer(random, 4, 20)
    weight[0] *= 0.01  # so that without a cap it would be pruned away
    zeros = (exact_obs(weight, hessian, sparsity=0.5) == 0).sum(1)
    assert zeros[0] == 20 and zeros.sum() == 40
    capped = (exact_obs(weight, hessian, sparsity=0.5, row_cap=0.6) == 0).sum(1)
    assert capped.max() == 12 and capped.sum() == 40


@pytest.mark.parametrize(("pattern", "inp"), [((2, 4), 24), ((2, 4), 23), ((1, 3), 20), ((4, 8), 17), ((0, 4), 8)])
def test_patterns(random, pattern, inp):
    weight, hessian = layer(random, 3, inp)
    got, want = (f(weight.double(), hessian, pattern=pattern) for f in (exact_obs, reference))
    assert torch.equal(got != 0, want != 0)
    assert torch.allclose(got, want, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_float32_costs_little(random):
    weight, hessian = layer(random, 4, 40)
    for scope in ("row", "global"):
        got = exact_obs(weight, hessian, sparsity=0.5, damp=0.01, scope=scope, dtype=torch.float32)
        want = reference(weight, hessian, sparsity=0.5, damp=0.01, scope=scope)
        assert got.dtype == torch.float32 and (got == 0).sum() == 80
        assert scope == "global" or ((got == 0).sum(1) == 20).all()
        # Condition 1e4: a choice between nearly equal scores may fall the other way, for better or worse.
        assert loss(weight, got, hessian).sum() <= 1.01 * loss(weight, want, hessian).sum()


def test_dead_inputs_damping_and_non_contiguous(random):
    weight, hessian = layer(random, 12, 20, samples=40)
    hessian[3], hessian[:, 3] = 0, 0
    rows = weight.double()[::3]
    for scope in ("row", "global"):
        got, want = (f(rows, hessian, sparsity=0.4, damp=0.05, scope=scope) for f in (exact_obs, reference))
        assert (got[:, 3] == 0).all() and torch.allclose(got, want, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_memory_bound_does_not_change_the_result(random):
    weight, hessian = layer(random, 5, 16)
    for scope, steps in (("row", 8), ("global", 16)):
        one = exact_obs(weight, hessian, sparsity=0.5, scope=scope)
        # One row at a time; the closed form of the global scope sums in another order then.
        small = exact_obs(weight, hessian, sparsity=0.5, scope=scope, max_bytes=steps * 16 * 8)
        assert torch.equal(one != 0, small != 0) and torch.allclose(one, small, rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="one row of 16 inputs"):
        exact_obs(weight, hessian, sparsity=0.5, max_bytes=100)


def test_equal_scores_remove_the_lowest_input(device):
    got = exact_obs(torch.ones(1, 8, device=device), 2 * torch.eye(8, device=device), sparsity=0.5, scope="row")
    assert got.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]


def test_bad_input(random, as_user):
    weight, hessian = layer(random, 2, 8)
    with pytest.raises(ValueError, match="scope must be one of global, row"):
        exact_obs(weight, hessian, sparsity=0.5, scope="layer")
    with pytest.raises(ValueError, match="row_cap must lie between"):
        exact_obs(weight, hessian, sparsity=0.5, row_cap=0.4)
    with pytest.raises(ValueError, match="exactly one"):
        exact_obs(weight, hessian)
    with pytest.raises(TypeError, match=r"float32, torch\.float64"):
        exact_obs(weight, hessian, sparsity=0.5, dtype=torch.float16)
    with pytest.raises(ValueError, match="NaN"):
        exact_obs(weight / 0, hessian, sparsity=0.5)
    with pytest.raises(ValueError, match=r"\(8, 8\)"):
        exact_obs(weight, hessian[:4, :4], sparsity=0.5)
