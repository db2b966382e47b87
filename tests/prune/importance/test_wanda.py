import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.checks import removals
from mlcomp.data import make_layer
from mlcomp.metrics import relative_error
from mlcomp.obs import layer_hessian
from mlcomp.prune import magnitude, wanda


@given(st.integers(1, 5), st.integers(1, 9), st.floats(0, 1), st.booleans(), st.integers(0, 2**31))
def test_exact_count_in_each_row_and_order_of_scores(out, inp, sparsity, ties, seed):
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, inp, generator=g)
    norm = torch.rand(inp, generator=g)
    if ties:
        weight, norm = weight.sign(), torch.ones(inp)
    pruned = wanda(weight, norm, sparsity=sparsity)
    kept = pruned != 0
    assert ((~kept).sum(1) == removals(sparsity, inp)).all()
    assert torch.equal(pruned[kept], weight[kept])
    for row, mask in zip(weight.double().abs() * norm.double(), kept, strict=True):
        if mask.any() and not mask.all():
            assert row[~mask].max() <= row[mask].min()


def test_best_mask_of_all_when_inputs_are_uncorrelated():
    g = torch.Generator().manual_seed(0)
    orthogonal = torch.linalg.qr(torch.randn(20, 6, generator=g, dtype=torch.float64))[0].T
    x = torch.rand(6, 1, generator=g, dtype=torch.float64).add(0.1) * orthogonal
    weight = torch.randn(1, 6, generator=g, dtype=torch.float64)
    errors = []
    for removed in itertools.combinations(range(6), 3):
        candidate = weight.clone()
        candidate[0, list(removed)] = 0
        errors.append(relative_error(weight, candidate, x))
    assert relative_error(weight, wanda(weight, x.norm(dim=1), sparsity=0.5), x) == pytest.approx(min(errors))


def test_equal_norms_are_magnitude_and_units_do_not_matter():
    weight, x, _ = make_layer(8, 16, 64)
    assert torch.equal(wanda(weight, torch.ones(16), sparsity=0.5), magnitude(weight, sparsity=0.5, scope="row"))
    assert torch.equal(wanda(weight, torch.ones(16), pattern=(2, 4)), magnitude(weight, pattern=(2, 4)))
    norm = x.norm(dim=1)
    from_hessian = layer_hessian(x.double()).diagonal().sqrt()
    for target in ({"sparsity": 0.4}, {"pattern": (4, 8)}):
        expected = wanda(weight, norm, **target)
        assert torch.equal(wanda(weight, from_hessian, **target), expected)
        # 1e-30 would underflow in float32 scores.
        assert torch.equal(wanda(weight * 2.0**-80, norm * 2.0**-80, **target) != 0, expected != 0)


def test_dead_inputs_go_first_but_not_beyond_the_count():
    weight = torch.full((2, 8), 5.0)
    norm = torch.tensor([1.0, 0, 1, 0, 1, 0, 1, 1])
    assert (wanda(weight, norm, sparsity=0.25) == 0).nonzero()[:, 1].tolist() == [1, 3] * 2
    assert (wanda(weight, norm, sparsity=0.5) == 0).nonzero()[:, 1].tolist() == [0, 1, 3, 5] * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_is_kept(dtype):
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    pruned = wanda(weight, torch.arange(8).float(), pattern=(2, 4))
    assert pruned.dtype == dtype and int((pruned == 0).sum()) == 16


def test_errors_of_the_authors_code_on_the_synthetic_layer():
    weight, x, held_out = make_layer(256, 256, 2048, seed=0)
    for target, calibration, fresh in (({"sparsity": 0.5}, 0.0378, 0.0381), ({"pattern": (2, 4)}, 0.0793, 0.0800)):
        pruned = wanda(weight, x.norm(dim=1), **target)
        assert relative_error(weight, pruned, x) == pytest.approx(calibration, abs=5e-5)
        assert relative_error(weight, pruned, held_out) == pytest.approx(fresh, abs=5e-5)


def test_bad_input(as_user):
    weight, norm = torch.ones(2, 4), torch.ones(4)
    with pytest.raises(ValueError, match="exactly one"):
        wanda(weight, norm)
    for bad in (torch.ones(3), torch.ones(4, 1)):
        with pytest.raises(ValueError, match=r"input_norm must be \(4,\)"):
            wanda(weight, bad, sparsity=0.5)
    with pytest.raises(ValueError, match="not a norm"):
        wanda(weight, -norm, sparsity=0.5)
    with pytest.raises(ValueError, match="input_norm holds"):
        wanda(weight, norm / 0, sparsity=0.5)
    with pytest.raises(ValueError, match="weight holds"):
        wanda(weight / 0, norm, sparsity=0.5)
