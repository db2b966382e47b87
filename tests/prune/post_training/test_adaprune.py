import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcomp.data import make_layer
from mlcomp.metrics import hessian_error, relative_error
from mlcomp.obs import layer_hessian
from mlcomp.prune import adaprune, magnitude


def least_squares(weight: torch.Tensor, x: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Each row of W fitted to its output from the kept inputs alone, by LAPACK on X itself."""
    result = torch.zeros_like(weight, dtype=torch.float64)
    for row in range(len(weight)):
        s = kept[row]
        target = (weight[row].double() @ x.double())[:, None]
        result[row, s] = torch.linalg.lstsq(x[s].double().T, target, driver="gelsd").solution[:, 0]
    return result


@pytest.mark.parametrize("target", [{"sparsity": 0.5}, {"pattern": (2, 4)}, {"sparsity": 0.9}])
def test_optimum_is_least_squares_on_the_magnitude_mask(target):
    weight, x, _ = make_layer(8, 18, 60, seed=1)
    pruned = adaprune(weight, layer_hessian(x.double()), **target)
    kept = magnitude(weight, **target) != 0
    assert torch.equal(pruned != 0, kept) and pruned.dtype == torch.float32
    assert torch.allclose(pruned.double(), least_squares(weight, x, kept), rtol=0, atol=1e-6)


def test_gradient_vanishes_on_the_mask_and_a_given_mask_is_kept():
    weight, x, _ = make_layer(6, 12, 50, seed=2)
    h = layer_hessian(x.double())
    mask = torch.rand(6, 12, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[0], mask[1] = True, False  # nothing to do, and nothing left
    before = weight.clone(), h.clone(), mask.clone()
    fitted = adaprune(weight.double(), h, mask=mask).requires_grad_()
    loss = ((weight.double() - fitted) @ x.double()).square().sum()
    loss.backward()
    assert float(fitted.grad[mask].abs().max()) < 1e-9 * float(h.abs().max())
    assert torch.equal(fitted[0], weight[0].double()) and (fitted[~mask] == 0).all()
    assert all(torch.equal(a, b) for a, b in zip(before, (weight, h, mask), strict=True))


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.integers(2, 10), st.integers(1, 20))
def test_error_never_grows_with_a_step(seed, inp, samples):
    # Fewer samples than inputs: H is singular.
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, inp, generator=g, dtype=torch.float64)
    h = layer_hessian(torch.randn(inp, samples, generator=g, dtype=torch.float64))
    errors = [hessian_error(weight, adaprune(weight, h, sparsity=0.5, steps=k), h) for k in range(inp + 2)]
    assert errors[0] == pytest.approx(hessian_error(weight, magnitude(weight, sparsity=0.5), h))
    # Errors are differences of numbers of order 1, so they are exact to float64 rounding only.
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(errors))


def test_singular_hessian_still_reaches_the_least_error():
    weight, x, _ = make_layer(5, 16, 6, seed=3)
    h = layer_hessian(x.double())
    pruned = adaprune(weight.double(), h, sparsity=0.5)
    best = least_squares(weight, x, magnitude(weight, sparsity=0.5) != 0)
    # Both are zero or positive up to the rounding of tr(δHδᵀ).
    assert hessian_error(weight, pruned, h) == pytest.approx(hessian_error(weight, best, h), abs=1e-12)


def test_ill_conditioned_hessian():
    g = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(12, 12, generator=g, dtype=torch.float64))[0]
    x = rotation * torch.logspace(0, -5, 12, dtype=torch.float64)  # condition of H: 1e10
    weight = torch.randn(4, 12, generator=g, dtype=torch.float64)
    kept = magnitude(weight, sparsity=0.5) != 0
    pruned = adaprune(weight, layer_hessian(x), sparsity=0.5, steps=500)
    best = relative_error(weight, least_squares(weight, x, kept), x)
    assert relative_error(weight, pruned, x) == pytest.approx(best, rel=1e-6)


def test_dead_inputs_go_first_and_units_do_not_matter():
    weight, x, _ = make_layer(4, 12, 64, seed=0)
    x[[2, 7]] = 0
    weight[:, 2] *= 100
    h = layer_hessian(x.double())
    pruned = adaprune(weight, h, sparsity=0.5)
    assert (pruned[:, [2, 7]] == 0).all() and int((pruned == 0).sum()) == 24
    assert torch.allclose(adaprune(weight, h * 1e-8, sparsity=0.5), pruned, rtol=1e-5, atol=1e-7)
    assert (adaprune(weight, h * 0, sparsity=0.5) == 0).all()


def test_ends_ties_and_dtypes():
    weight, x, _ = make_layer(4, 10, 64, seed=0)
    h = layer_hessian(x)
    assert torch.equal(adaprune(weight, h, sparsity=0.0), weight)
    assert adaprune(weight, h, sparsity=1.0).count_nonzero() == 0
    assert int((adaprune(weight.sign(), h, sparsity=0.5) == 0).sum()) == 20
    assert ((adaprune(weight, h, pattern=(2, 4)) == 0).sum(1) == 5).all()
    for dtype in (torch.bfloat16, torch.float64):
        assert adaprune(weight.to(dtype), h, sparsity=0.5).dtype == dtype


def test_far_better_than_magnitude_on_the_synthetic_layer():
    weight, x, held_out = make_layer(128, 128, 1024, seed=0)
    plain = magnitude(weight, sparsity=0.5)
    fitted = adaprune(weight, layer_hessian(x), sparsity=0.5)
    assert relative_error(weight, fitted, x) < 0.5 * relative_error(weight, plain, x)
    assert relative_error(weight, fitted, held_out) < 0.6 * relative_error(weight, plain, held_out)


def test_bad_input(as_user):
    weight, h = torch.ones(2, 4), torch.eye(4)
    mask = torch.ones(2, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="exactly one"):
        adaprune(weight, h)
    with pytest.raises(ValueError, match="target of its own"):
        adaprune(weight, h, mask=mask, sparsity=0.5)
    for bad in (mask[:, :3], mask.float()):
        with pytest.raises(ValueError, match="mask must be a boolean tensor"):
            adaprune(weight, h, mask=bad)
    with pytest.raises(ValueError, match="steps"):
        adaprune(weight, h, sparsity=0.5, steps=-1)
    with pytest.raises(ValueError, match="symmetric"):
        adaprune(weight, torch.triu(torch.ones(4, 4)), sparsity=0.5)
    with pytest.raises(ValueError, match="hessian must be"):
        adaprune(weight, torch.eye(3), sparsity=0.5)
    with pytest.raises(ValueError, match="weight holds"):
        adaprune(weight / 0, h, sparsity=0.5)
