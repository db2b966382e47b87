import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.checks import removals
from mlcomp.data import make_layer
from mlcomp.metrics import relative_error
from mlcomp.prune import global_magnitude, magnitude, nm_mask


@given(st.integers(1, 6), st.integers(1, 9), st.floats(0, 1), st.booleans(), st.integers(0, 2**31))
def test_exact_count_and_nothing_kept_is_smaller(out, inp, sparsity, ties, seed):
    weight = torch.randn(out, inp, generator=torch.Generator().manual_seed(seed))
    if ties:
        weight = weight.sign()
    before = weight.clone()
    for scope in ("tensor", "row"):
        pruned = magnitude(weight, sparsity=sparsity, scope=scope)
        kept = pruned != 0
        if scope == "tensor":
            assert int((~kept).sum()) == removals(sparsity, weight.numel())
        else:
            assert ((~kept).sum(1) == removals(sparsity, inp)).all()
        assert torch.equal(pruned[kept], weight[kept]) and torch.equal(weight, before)
        for row, mask in ((weight, kept),) if scope == "tensor" else zip(weight, kept, strict=True):
            if mask.any() and not mask.all():
                assert row[~mask].abs().max() <= row[mask].abs().min()


def test_ties_go_by_index():
    pruned = magnitude(torch.tensor([[1.0, -1.0], [1.0, 1.0]]), sparsity=0.5)
    assert pruned.tolist() == [[0, 0], [1, 1]]
    assert magnitude(torch.ones(2, 4), sparsity=0.5, scope="row").tolist() == [[0, 0, 1, 1]] * 2


def test_pattern_and_its_ends():
    weight = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    assert torch.equal(magnitude(weight, pattern=(2, 4)) == 0, nm_mask(weight.abs(), (2, 4)))
    assert torch.equal(magnitude(weight, pattern=(0, 4)), weight)
    assert magnitude(weight, pattern=(4, 4)).count_nonzero() == 0
    assert torch.equal(magnitude(weight, sparsity=0.0), weight)
    assert magnitude(weight, sparsity=1.0).count_nonzero() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_is_kept(dtype):
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    pruned = magnitude(weight, sparsity=0.25)
    assert pruned.dtype == dtype and int((pruned == 0).sum()) == 8


def test_published_errors_of_the_synthetic_layer():
    weight, x, held_out = make_layer(256, 256, 2048, seed=0)
    half, two_four = magnitude(weight, sparsity=0.5), magnitude(weight, pattern=(2, 4))
    # Calibration and held-out error of a plain implementation with torch.topk on the same layer.
    assert relative_error(weight, half, x) == pytest.approx(0.0695, abs=5e-5)
    assert relative_error(weight, half, held_out) == pytest.approx(0.0697, abs=1e-4)
    assert relative_error(weight, two_four, x) == pytest.approx(0.1288, abs=5e-5)
    assert relative_error(weight, two_four, held_out) == pytest.approx(0.1298, abs=5e-5)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.floats(0, 1), st.integers(0, 2**31))
def test_global_magnitude_is_magnitude_of_the_concatenation(sizes, sparsity, seed):
    g = torch.Generator().manual_seed(seed)
    weights = [torch.randint(-3, 4, (1, n), generator=g).float() for n in sizes]
    together = magnitude(torch.cat(weights, 1), sparsity=sparsity)
    assert torch.equal(torch.cat(global_magnitude(weights, sparsity=sparsity), 1), together)


def test_global_magnitude_keeps_names_shapes_dtypes_and_is_uneven():
    g = torch.Generator().manual_seed(0)
    weights = {
        "conv": torch.randn(4, 3, 3, 3, generator=g),
        "small": (0.01 * torch.randn(10, 10, generator=g)).bfloat16(),
        "norm": torch.ones(5, dtype=torch.float64),
    }
    pruned = global_magnitude(weights, sparsity=0.5)
    assert list(pruned) == list(weights)
    for name, weight in weights.items():
        assert pruned[name].shape == weight.shape and pruned[name].dtype == weight.dtype
    total = sum(w.numel() for w in weights.values())
    assert sum(int((w == 0).sum()) for w in pruned.values()) == removals(0.5, total)
    assert (pruned["small"] == 0).all() and (pruned["norm"] == 1).all()


def test_bad_input(as_user):
    weight = torch.ones(2, 4)
    for kwargs in ({}, {"sparsity": 0.5, "pattern": (2, 4)}):
        with pytest.raises(ValueError, match="exactly one"):
            magnitude(weight, **kwargs)
    for sparsity in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="sparsity"):
            magnitude(weight, sparsity=sparsity)
        with pytest.raises(ValueError, match="sparsity"):
            global_magnitude([weight], sparsity=sparsity)
    with pytest.raises(ValueError, match="scope"):
        magnitude(weight, sparsity=0.5, scope="column")
    with pytest.raises(ValueError, match="NaN or infinite"):
        magnitude(weight / 0, sparsity=0.5)
    with pytest.raises(ValueError, match=r"weights\['a'\] holds"):
        global_magnitude({"a": weight / 0}, sparsity=0.5)
    with pytest.raises(ValueError, match="empty"):
        global_magnitude([], sparsity=0.5)
    with pytest.raises(TypeError, match="floating point"):
        global_magnitude([torch.ones(2, dtype=torch.int64)], sparsity=0.5)
