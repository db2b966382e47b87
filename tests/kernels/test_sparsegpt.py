import pytest
import torch

from mlcomp.kernels.sparsegpt import sparsegpt
from mlcomp.prune import sparsegpt as reference
from tests.kernels.test_exact_obs import layer, loss


def same(got, want):
    """Raise unless both have the same zeros, and weights that differ by float64 rounding alone."""
    assert torch.equal(got != 0, want != 0) and got.dtype == want.dtype and got.is_contiguous()
    torch.testing.assert_close(got, want, rtol=0, atol=1e-9)  # at a condition up to 1e4


TARGETS = [
    (5, 7, {"sparsity": 0.5}), (1, 1, {"sparsity": 1.0}), (3, 16, {"sparsity": 0.0}),
    (70, 12, {"sparsity": 0.4, "mask_block": 5}),
    (4, 40, {"sparsity": 0.6, "mask_block": 6, "block_size": 16, "order": "activation"}),
    (4, 40, {"sparsity": 0.6, "mask_block": 25, "block_size": 8, "order": "ascending"}),
    (3, 24, {"pattern": (2, 4)}), (3, 23, {"pattern": (2, 4), "block_size": 9}), (3, 20, {"pattern": (1, 3)}),
    (2, 17, {"pattern": (4, 8)}), (2, 17, {"pattern": (3, 7), "block_size": 5}), (2, 8, {"pattern": (0, 4)}),
    (2, 8, {"pattern": (4, 4)}),
    pytest.param(2, 132, {"pattern": (2, 4)}, marks=pytest.mark.slow),
    pytest.param(2, 140, {"sparsity": 0.5}, marks=pytest.mark.slow),
    pytest.param(2, 135, {"pattern": (60, 130)}, marks=pytest.mark.slow),
]  # fmt: skip


@pytest.mark.parametrize(("out", "inp", "options"), TARGETS)
def test_equals_the_reference(random, out, inp, options):
    weight, hessian = layer(random, out, inp)
    before = weight.double()
    same(sparsegpt(before, hessian, **options), reference(weight.double(), hessian, **options))
    assert torch.equal(before, weight.double())


def test_a_given_mask(random):
    weight, hessian = layer(random, 4, 30)
    mask = random(4, 30, seed=5) > 0
    for options in ({}, {"order": "activation", "block_size": 7}):
        got = sparsegpt(weight.double(), hessian, mask=mask, **options)
        same(got, reference(weight.double(), hessian, mask=mask, **options))
        assert torch.equal(got != 0, mask)


@pytest.mark.parametrize("target", [{"sparsity": 0.5, "mask_block": 8}, {"pattern": (2, 4)}])
def test_float32_costs_little(random, target):
    weight, hessian = layer(random, 16, 40)
    got = sparsegpt(weight, hessian, dtype=torch.float32, **target)
    want = reference(weight, hessian, **target)
    assert got.dtype == torch.float32 and (got == 0).sum() == (want == 0).sum()
    # A choice between nearly equal scores may fall the other way, for better or worse.
    assert loss(weight, got, hessian).sum() <= 1.02 * loss(weight, want, hessian).sum()


@pytest.mark.parametrize("target", [{"sparsity": 0.2}, {"pattern": (2, 4)}, {"pattern": (1, 4)}])
def test_dead_inputs_are_the_first_zeros(random, target):
    weight, hessian = layer(random, 12, 20, samples=40)
    dead = [3, 5, 6]  # two of them in one group of four
    hessian[dead], hessian[:, dead] = 0, 0
    got = sparsegpt(weight.double()[::3], hessian.T, **target)
    same(got, reference(weight.double()[::3], hessian, **target))
    assert (got[:, dead] == 0).all()


def test_equal_scores_remove_the_lowest_input(device):
    ones, identity = torch.ones(2, 8, device=device), 2 * torch.eye(8, device=device)
    got = sparsegpt(ones, identity, pattern=(3, 4))
    assert (got != 0).tolist() == [[False, False, False, True] * 2] * 2


def test_bad_input(random, as_user):
    weight, hessian = layer(random, 2, 8)
    for wrong, told in (
        ({}, "exactly one"), ({"sparsity": 1.5}, "sparsity"), ({"pattern": (3, 2)}, "pattern"),
        ({"pattern": (2, 4), "order": "activation"}, "must be natural"),
        ({"sparsity": 0.5, "order": "best"}, "order"), ({"sparsity": 0.5, "mask": weight > 0}, "excludes"),
        ({"sparsity": 0.5, "block_size": 0}, "block_size"), ({"sparsity": 0.5, "mask_block": 0}, "mask_block"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            sparsegpt(weight, hessian, **wrong)
    with pytest.raises(TypeError, match=r"float32, torch\.float64"):
        sparsegpt(weight, hessian, sparsity=0.5, dtype=torch.float16)
    with pytest.raises(ValueError, match="one device"):
        sparsegpt(weight, hessian, mask=(weight > 0).to("meta"))
