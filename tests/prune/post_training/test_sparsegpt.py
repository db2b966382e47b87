import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.checks import removals
from mlcomp.data.synthetic import make_layer
from mlcomp.metrics import hessian_error, relative_error
from mlcomp.obs import layer_hessian, sparsegpt
from mlcomp.prune import magnitude
from tests.examples import examples


@pytest.fixture(scope="module")
def layer():
    weight, calibration, held_out = make_layer(256, 256, 2048, seed=0)
    return weight, calibration, held_out, layer_hessian(calibration)


def small(out=6, inp=24, samples=60, seed=0):
    weight, x, _ = make_layer(out, inp, samples, seed=seed)
    return weight, x, layer_hessian(x)


def damped(hessian, damp=0.01):
    h = hessian.double()
    return h + damp * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype)


def suffix_inverses(hessian):
    """The inverse of H over columns p and later, inverted afresh for every p."""
    h = damped(hessian)
    return [torch.linalg.inv(h[p:, p:]) for p in range(len(h))]


def literal_sweep(weight, inverses, keep):
    """One OBS step at each zero of each row in natural order; columns before it are fixed, kept or not."""
    result = weight.double().clone()
    for w, kept in zip(result, keep, strict=True):
        for p, inverse in enumerate(inverses):
            if not kept[p]:
                w[p:] -= w[p] / inverse[0, 0] * inverse[:, 0]
                w[p] = 0
    return result


def literal_masks(weight, hessian, sparsity, mask_block):
    """Algorithm 1 of the paper with the masks chosen block by block, no factor and no lazy batches."""
    inverses = suffix_inverses(hessian)
    out, inp = weight.shape
    w = weight.double().clone()
    total = removals(sparsity, out * inp)
    for a in range(0, inp, mask_block):
        b = min(a + mask_block, inp)
        scores = w[:, a:b].square() / torch.stack([inverses[p][0, 0] for p in range(a, b)])
        count = math.floor(total * b / inp + 0.5) - math.floor(total * a / inp + 0.5)
        keep = torch.ones_like(w, dtype=torch.bool)
        keep[:, a:b][torch.unravel_index(scores.flatten().argsort()[:count], scores.shape)] = False
        w = literal_sweep(w, inverses, keep)
    return w


def test_errors_are_those_of_the_authors_code(layer):
    weight, calibration, held_out, hessian = layer
    half = sparsegpt(weight, hessian, sparsity=0.5)
    two_four = sparsegpt(weight, hessian, pattern=(2, 4))
    # 1 %: three digits were recorded.
    assert relative_error(weight, half, calibration) == pytest.approx(0.0204, rel=0.01)
    assert relative_error(weight, half, held_out) == pytest.approx(0.0220, rel=0.01)
    assert relative_error(weight, two_four, calibration) == pytest.approx(0.0377, rel=0.01)
    assert relative_error(weight, two_four, held_out) == pytest.approx(0.0413, rel=0.01)


def test_smaller_mask_blocks_gain_and_a_third_of_magnitude_is_the_least_to_expect(layer):
    weight, calibration, _, hessian = layer
    error = {
        m: relative_error(weight, sparsegpt(weight, hessian, sparsity=0.5, mask_block=m), calibration)
        for m in (1, 16, 64, 128, 256)
    }
    assert error[16] < error[64] < error[128] < error[256] < error[1]
    assert error[128] < relative_error(weight, magnitude(weight, sparsity=0.5), calibration) / 3


@examples(25)
@given(seed=st.integers(0, 10_000), share=st.floats(0, 1), block_size=st.sampled_from([1, 7, 24, 100]))
def test_a_given_mask_is_swept_by_obs_steps_in_column_order(seed, share, block_size):
    weight, _, hessian = small(seed=seed)
    keep = torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) >= share
    result = sparsegpt(weight, hessian, mask=keep, block_size=block_size)
    assert (result[~keep] == 0).all()
    torch.testing.assert_close(
        result.double(), literal_sweep(weight, suffix_inverses(hessian), keep), rtol=1e-5, atol=1e-6
    )


@examples(25)
@given(
    seed=st.integers(0, 10_000),
    sparsity=st.floats(0, 1),
    mask_block=st.sampled_from([1, 5, 12, 50]),
    block_size=st.sampled_from([1, 7, 100]),
)
def test_masks_are_those_of_the_literal_algorithm(seed, sparsity, mask_block, block_size):
    weight, _, hessian = small(out=4, inp=12, seed=seed)
    result = sparsegpt(weight, hessian, sparsity=sparsity, mask_block=mask_block, block_size=block_size)
    expected = literal_masks(weight, hessian, sparsity, mask_block)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-6)


@examples(30)
@given(
    seed=st.integers(0, 10_000),
    sparsity=st.floats(0, 1),
    order=st.sampled_from(["natural", "activation", "ascending"]),
    mask_block=st.sampled_from([1, 5, 24, 128]),
    dead=st.integers(0, 5),
)
def test_the_number_of_zeros_is_exact(seed, sparsity, order, mask_block, dead):
    weight, x, _ = small(seed=seed)
    x[:: 24 // 5][:dead] = 0
    dead = int((x.abs().sum(1) == 0).sum())
    result = sparsegpt(weight, layer_hessian(x), sparsity=sparsity, order=order, mask_block=mask_block)
    assert int((result == 0).sum()) == max(removals(sparsity, 144), dead * 6)


@pytest.mark.parametrize("hessian", [torch.eye(32), small(inp=32)[2]])
def test_ties_do_not_change_the_count(hessian):
    ties = torch.ones(8, 32) * torch.tensor([1.0, -1.0]).repeat(16)
    assert int((sparsegpt(ties, hessian, sparsity=0.5) == 0).sum()) == 128
    two_four = sparsegpt(ties, hessian, pattern=(2, 4)) == 0
    assert (two_four.view(8, 8, 4).sum(-1) == 2).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_sparsity_zero_keeps_and_one_removes_everything(dtype):
    weight, _, hessian = small()
    weight = weight.to(dtype)
    for nothing in ({"sparsity": 0.0}, {"pattern": (0, 4)}, {"mask": torch.ones(6, 24, dtype=torch.bool)}):
        assert torch.equal(sparsegpt(weight, hessian, **nothing), weight)
    for everything in ({"sparsity": 1.0}, {"pattern": (4, 4)}, {"mask": torch.zeros(6, 24).bool()}):
        result = sparsegpt(weight, hessian, **everything)
        assert result.dtype == dtype and torch.equal(result, torch.zeros_like(weight))


def test_identity_hessian_gives_magnitude_pruning():
    weight = small()[0]
    assert torch.equal(sparsegpt(weight, torch.eye(24), sparsity=0.3), magnitude(weight, sparsity=0.3))
    assert torch.equal(sparsegpt(weight, torch.eye(24), pattern=(2, 4)), magnitude(weight, pattern=(2, 4)))


@pytest.mark.parametrize(
    ("inp", "pattern", "tail"), [(26, (2, 4), 1), (27, (2, 4), 1), (28, (4, 8), 2), (25, (2, 4), 0)]
)
def test_ragged_width_has_the_pattern_up_to_its_tail(inp, pattern, tail):
    weight, _, hessian = small(inp=inp)
    zeros = sparsegpt(weight, hessian, pattern=pattern, block_size=10) == 0
    n, m = pattern
    whole = inp - inp % m
    assert (zeros[:, :whole].view(6, -1, m).sum(-1) == n).all()
    assert (zeros[:, whole:].sum(-1) == tail).all()


@pytest.mark.parametrize(
    "options", [{"sparsity": 0.5, "mask_block": 48}, {"pattern": (2, 4)}, {"sparsity": 0.7, "order": "ascending"}]
)
def test_block_size_never_changes_the_result(layer, options):
    weight, _, _, hessian = layer
    reference = sparsegpt(weight, hessian, block_size=256, **options)
    for block_size in (30, 128):
        result = sparsegpt(weight, hessian, block_size=block_size, **options)
        assert torch.equal(result == 0, reference == 0)
        # One unit of float32 rounding: the sums run in another order, in float64.
        torch.testing.assert_close(result, reference, rtol=2e-7, atol=1e-9)


@examples(15)
@given(seed=st.integers(0, 10_000), power=st.integers(-20, 20))
def test_scale_of_the_inputs_does_not_matter(seed, power):
    weight, x, hessian = small(seed=seed)
    scaled = layer_hessian(x * 2.0**power)  # a power of two: exact in float32
    torch.testing.assert_close(sparsegpt(weight, scaled, sparsity=0.5), sparsegpt(weight, hessian, sparsity=0.5))


@pytest.mark.parametrize("options", [{"sparsity": 0.25}, {"pattern": (2, 4)}, {"mask": torch.ones(6, 24).bool()}])
@pytest.mark.parametrize("damp", [0.0, 0.01])
def test_dead_inputs_are_zero_and_change_nothing_else(options, damp):
    weight, x, _ = small()
    x[[3, 4]] = 0
    hessian = layer_hessian(x)
    loud = weight.clone()
    loud[:, [3, 4]] *= 100
    result = sparsegpt(loud, hessian, damp=damp, **options)
    assert torch.equal(result[:, [3, 4]], torch.zeros(6, 2))
    assert torch.equal(result, sparsegpt(weight, hessian, damp=damp, **options))
    if "pattern" in options:  # a dead input fills its pattern: one more zero there, not two
        assert ((result == 0).view(6, 6, 4).sum(-1) == 2).all()


def test_more_dead_inputs_than_the_target_or_nothing_alive():
    weight, x, _ = small()
    x[:20] = 0
    result = sparsegpt(weight, layer_hessian(x), sparsity=0.1)
    assert torch.equal(result[:, 20:], weight[:, 20:]) and int((result == 0).sum()) == 120
    assert torch.equal(sparsegpt(weight, torch.zeros(24, 24), sparsity=0.5), torch.zeros(6, 24))


def test_fewer_samples_than_inputs(as_user):
    weight, x, _ = make_layer(32, 128, 64, seed=1)
    hessian = layer_hessian(x)
    with pytest.raises(ValueError, match="singular"):
        sparsegpt(weight, hessian, sparsity=0.5, damp=0.0)
    by_magnitude = relative_error(weight, magnitude(weight, sparsity=0.5), x)
    assert relative_error(weight, sparsegpt(weight, hessian, sparsity=0.5), x) < 0.3 * by_magnitude


def test_condition_of_1e10_follows_the_literal_sweep():
    g = torch.Generator().manual_seed(0)
    rotation, _ = torch.linalg.qr(torch.randn(24, 24, generator=g, dtype=torch.float64))
    hessian = (rotation * torch.logspace(0, -10, 24, dtype=torch.float64)) @ rotation.T
    hessian = (hessian + hessian.T) / 2
    weight = torch.randn(4, 24, generator=g, dtype=torch.float64)
    keep = torch.rand(4, 24, generator=g) > 0.5
    result = sparsegpt(weight, hessian, mask=keep, damp=0.0)
    # Exact arithmetic would leave equal losses; ten of float64's sixteen digits go to the condition number.
    loss = hessian_error(weight, result, hessian)
    fine = sparsegpt(weight, hessian, mask=keep, damp=0.0, block_size=1)
    assert loss == pytest.approx(hessian_error(weight, fine, hessian), rel=1e-5)
    # The greedy-free sweep cannot beat the optimum on the mask, and each row's optimum is a linear solve.
    best = torch.zeros_like(weight)
    for w, b, kept in zip(weight, best, keep, strict=True):
        b[kept] = w[kept] + torch.linalg.solve(hessian[kept][:, kept], hessian[kept][:, ~kept] @ w[~kept])
    assert hessian_error(weight, best, hessian) <= loss * (1 + 1e-5)


def test_arguments_stay_as_they_were():
    weight, _, hessian = small()
    keep = weight.abs() > weight.abs().median()
    before = weight.clone(), hessian.clone(), keep.clone()
    sparsegpt(weight, hessian, sparsity=0.5, order="ascending")
    sparsegpt(weight, hessian, mask=keep)
    assert torch.equal(weight, before[0]) and torch.equal(hessian, before[1]) and torch.equal(keep, before[2])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sparsity": 1.5}, ValueError, "sparsity"),
        ({"sparsity": float("nan")}, ValueError, "sparsity"),
        ({"sparsity": None}, ValueError, "exactly one"),
        ({"pattern": (2, 4)}, ValueError, "exactly one"),
        ({"sparsity": None, "pattern": (5, 4)}, ValueError, "pattern"),
        ({"sparsity": None, "pattern": (2, 4), "order": "ascending"}, ValueError, "order must be natural"),
        ({"mask": torch.ones(6, 24).bool()}, ValueError, "mask excludes"),
        ({"sparsity": None, "mask": torch.ones(6, 24)}, ValueError, "boolean"),
        ({"sparsity": None, "mask": torch.ones(6, 23).bool()}, ValueError, "boolean"),
        ({"mask_block": 0}, ValueError, "mask_block"),
        ({"block_size": -1}, ValueError, "block_size"),
        ({"order": "descending"}, ValueError, "order must be one of"),
        ({"damp": float("nan")}, ValueError, "damp"),
        ({"weight": torch.full((6, 24), torch.inf)}, ValueError, "NaN or infinite"),
        ({"weight": torch.ones(6, 24, dtype=torch.int32)}, TypeError, "floating"),
        ({"hessian": torch.eye(25)}, ValueError, "24 inputs"),
        ({"hessian": torch.ones(24, 24).tril()}, ValueError, "symmetric"),
        ({"hessian": torch.eye(24) * torch.nan}, ValueError, "NaN"),
    ],
)
def test_bad_input_is_a_clear_error(as_user, change, error, message):
    weight, _, hessian = small()
    arguments = {"weight": weight, "hessian": hessian, "sparsity": 0.5, **change}
    with pytest.raises(error, match=message):
        sparsegpt(arguments.pop("weight"), arguments.pop("hessian"), **arguments)
