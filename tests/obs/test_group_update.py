import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.data import make_layer
from mlcomp.obs import group_update, layer_hessian
from tests.obs.literal import damped


def small(out=5, inp=12, samples=60, seed=0):
    weight, x, _ = make_layer(out, inp, samples, seed=seed)
    return weight.double(), layer_hessian(x.double())


def constrained_minimum(row, removed, hessian):
    """Minimize ½·δ·H·δᵀ subject to δ_M = -w_M, by the saddle-point system of the Lagrangian."""
    d, gone = len(row), removed.nonzero()[:, 0]
    select = torch.eye(d, dtype=torch.float64)[gone]
    system = torch.zeros(d + len(gone), d + len(gone), dtype=torch.float64)
    system[:d, :d], system[:d, d:], system[d:, :d] = hessian, select.T, select
    right = torch.cat([torch.zeros(d, dtype=torch.float64), -row[gone]])
    return row + torch.linalg.solve(system, right)[:d]


@given(seed=st.integers(0, 10**6), inp=st.integers(1, 16), share=st.floats(0, 1))
def test_is_the_minimum_under_the_constraint(seed, inp, share):
    weight, hessian = small(4, inp, 3 * inp + 5, seed)
    removed = torch.rand(4, inp, generator=torch.Generator().manual_seed(seed)) < share
    updated = group_update(weight, removed, hessian)
    assert (updated[removed] == 0).all()
    for row, gone, found in zip(weight, removed, updated, strict=True):
        torch.testing.assert_close(found, constrained_minimum(row, gone, hessian), rtol=1e-7, atol=1e-9)


def test_equals_removal_one_by_one_in_every_order():
    weight, hessian = small(1)
    removed = torch.zeros(1, 12, dtype=torch.bool)
    removed[0, [1, 3, 7, 8]] = True
    together = group_update(weight, removed, hessian)[0]
    for order in itertools.permutations([1, 3, 7, 8]):
        w, b = weight[0].clone(), torch.linalg.inv(hessian)
        for p in order:
            w = w - w[p] / b[p, p] * b[:, p]
            b = b - torch.outer(b[:, p], b[p]) / b[p, p]
        torch.testing.assert_close(together, w, rtol=1e-9, atol=1e-12)


def test_with_damping_the_minimum_is_that_of_the_damped_hessian():
    weight, hessian = small()
    removed = torch.rand(5, 12, generator=torch.Generator().manual_seed(1)) < 0.4
    updated = group_update(weight, removed, hessian, damp=0.2)
    for row, gone, found in zip(weight, removed, updated, strict=True):
        torch.testing.assert_close(found, constrained_minimum(row, gone, damped(hessian, 0.2)))


def test_a_weight_that_is_zero_already_stays_zero_only_if_removed():
    weight, hessian = small(2)
    weight[:, 4] = 0
    removed = torch.zeros(2, 12, dtype=torch.bool)
    removed[:, 5] = True
    removed[1, 4] = True
    updated = group_update(weight, removed, hessian)
    assert updated[0, 4] != 0 and updated[1, 4] == 0


def test_dtypes_and_arguments_stay():
    weight, hessian = small()
    removed = torch.rand(5, 12, generator=torch.Generator().manual_seed(1)) < 0.4
    for dtype in (torch.float32, torch.bfloat16):
        given_weight = weight.to(dtype)
        before = given_weight.clone(), removed.clone(), hessian.clone()
        updated = group_update(given_weight, removed, hessian)
        assert updated.dtype == dtype
        assert torch.equal(updated, group_update(given_weight.double(), removed, hessian).to(dtype))
        assert all(torch.equal(a, b) for a, b in zip(before, (given_weight, removed, hessian), strict=True))


def test_bad_input(as_user):
    weight, hessian = small()
    removed = torch.zeros(5, 12, dtype=torch.bool)
    for bad in (removed[:, 1:], removed.long(), None):
        with pytest.raises(ValueError, match="removed must be a boolean tensor"):
            group_update(weight, bad, hessian)
    with pytest.raises(ValueError, match="weight holds"):
        group_update(weight / 0, removed, hessian)
    singular = layer_hessian(make_layer(5, 12, 6, seed=0)[1])
    with pytest.raises(ValueError, match="singular"):
        group_update(weight, removed, singular)
