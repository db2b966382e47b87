import pytest
import torch

from mlcomp.data import make_layer
from mlcomp.obs import exact_obs_trace, layer_hessian
from mlcomp.obs.replay import replay


def make_trace(out=7, inp=50, **options):
    weight, inputs, _ = make_layer(out, inp, 200, seed=1)
    inputs[3] = 0  # a dead input
    return exact_obs_trace(weight.double(), layer_hessian(inputs.double()), damp=0.01, **options)


@pytest.mark.parametrize("max_bytes", [2**28, 2**18])
def test_equals_the_group_update_of_each_level(max_bytes):
    trace = make_trace()
    counts = torch.randint(0, 51, (9, 7), generator=torch.Generator().manual_seed(0))
    counts[0], counts[1], counts[2, 0] = 0, 50, 50
    found = replay(trace, counts, max_bytes=max_bytes)
    for level, row in zip(found, counts, strict=True):
        truth = trace.weights_at(row)
        assert torch.equal(level == 0, truth == 0)
        torch.testing.assert_close(level, truth, rtol=1e-8, atol=1e-10)  # two float64 ways, condition about 1e3


def test_dtype_and_capped_trace():
    trace = make_trace(row_cap=0.5)
    assert replay(trace, torch.full((1, 7), 25)).shape == (1, 7, 50)
    weight, inputs, _ = make_layer(2, 6, 30)
    single = exact_obs_trace(weight.bfloat16(), layer_hessian(inputs))
    assert replay(single, torch.ones(1, 2, dtype=torch.int64)).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="counts must lie in 0 … 25, got 26"):
        replay(trace, torch.full((1, 7), 26))


def test_bad_input(as_user):
    trace = make_trace()
    with pytest.raises(ValueError, match="got -1"):
        replay(trace, torch.full((1, 7), -1))
    with pytest.raises(ValueError, match=r"whole numbers \(levels, 7\)"):
        replay(trace, torch.ones(1, 6, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"whole numbers \(levels, 7\)"):
        replay(trace, torch.ones(1, 7))
    with pytest.raises(ValueError, match="block_size=5"):
        replay(make_trace(block_size=5), torch.ones(1, 7, dtype=torch.int64))
