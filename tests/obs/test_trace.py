import pytest
import torch

from mlcomp.data import make_layer
from mlcomp.obs import exact_obs, exact_obs_trace, layer_hessian, refit
from tests.obs.literal import algorithm_1


def small(out=4, inp=18, samples=60, seed=0):
    weight, x, _ = make_layer(out, inp, samples, seed=seed)
    return weight.double(), layer_hessian(x.double())


@pytest.mark.parametrize("block_size", [1, 4])
def test_weights_at_any_counts_are_algorithm_1_stopped_there(block_size):
    weight, hessian = small()
    trace = exact_obs_trace(weight, hessian, block_size=block_size)
    assert trace.units == -(-18 // block_size)
    for counts in ([0, 1, 2, 3], [trace.units, 4, 0, trace.units - 1]):
        found = trace.weights_at(torch.tensor(counts))
        for i, k in enumerate(counts):
            expected, order, _ = algorithm_1(weight[i], hessian, k, block_size=block_size)
            torch.testing.assert_close(found[i], expected, rtol=1e-8, atol=1e-11)
            removed = {j for u in order for j in range(u * block_size, min(18, (u + 1) * block_size))}
            assert trace.removed_at(torch.tensor(counts))[i].nonzero()[:, 0].tolist() == sorted(removed)


def test_losses_are_those_of_the_weights():
    weight, hessian = small()
    trace = exact_obs_trace(weight, hessian)
    total = trace.total_losses()
    assert total.shape == (4, 19) and (total[:, 0] == 0).all() and (trace.losses >= 0).all()
    for k in (1, 9, 18):
        delta = trace.weights_at(k) - weight
        torch.testing.assert_close(total[:, k], ((delta @ hessian) * delta).sum(1) / 2, rtol=1e-8, atol=1e-12)


def test_is_the_refit_on_its_mask():
    weight, hessian = small()
    trace = exact_obs_trace(weight, hessian)
    torch.testing.assert_close(
        trace.weights_at(9), refit(weight, ~trace.removed_at(9), hessian), rtol=1e-8, atol=1e-11
    )


def test_a_cap_cuts_the_same_trace_short():
    weight, hessian = small()
    full, short = exact_obs_trace(weight, hessian), exact_obs_trace(weight, hessian, row_cap=0.5)
    assert short.order.shape == (4, 9)
    assert torch.equal(short.order, full.order[:, :9])
    torch.testing.assert_close(short.losses, full.losses[:, :9])


def test_dtype_and_dead_inputs():
    weight, hessian = small()
    hessian[3] = hessian[:, 3] = 0
    trace = exact_obs_trace(weight.to(torch.bfloat16), hessian)
    assert trace.weights_at(5).dtype == torch.bfloat16
    assert (trace.weights_at(0)[:, 3] == 0).all()
    assert (trace.order[:, 0] == 3).all() and (trace.losses[:, 0] == 0).all()


def test_global_pruning_is_one_choice_of_counts():
    weight, hessian = small()
    trace = exact_obs_trace(weight, hessian)
    pruned = exact_obs(weight, hessian, sparsity=0.4)
    counts = (pruned == 0).sum(1)
    torch.testing.assert_close(trace.weights_at(counts), pruned)


@pytest.mark.parametrize("counts", [-1, 19, [0, 0, 0, 19], 0.5])
def test_bad_counts(as_user, counts):
    weight, hessian = small()
    trace = exact_obs_trace(weight, hessian)
    with pytest.raises(ValueError, match="counts"):
        trace.weights_at(torch.tensor(counts) if isinstance(counts, list) else counts)
