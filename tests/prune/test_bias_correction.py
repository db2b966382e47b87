import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.data import make_layer
from mlcomp.prune import bias_correction, magnitude


@given(st.integers(1, 5), st.integers(1, 8), st.integers(1, 20), st.booleans(), st.integers(0, 2**31))
def test_mean_output_is_the_dense_one(out, inp, samples, drifted, seed):
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, inp, generator=g, dtype=torch.float64)
    x = torch.randn(inp, samples, generator=g, dtype=torch.float64) + 1
    x_hat = x + 0.3 * torch.randn(inp, samples, generator=g, dtype=torch.float64) if drifted else x
    pruned = magnitude(weight, sparsity=0.5)
    shift = bias_correction(weight, pruned, x.mean(1), corrected_input_mean=x_hat.mean(1) if drifted else None)
    outputs = pruned @ x_hat + shift[:, None]
    torch.testing.assert_close(outputs.mean(1), (weight @ x).mean(1), atol=1e-12, rtol=1e-12)


def test_is_the_best_bias():
    """The least-squares bias, found by solving for it on a column of ones."""
    weight, x, _ = make_layer(6, 16, 200)
    weight, x = weight.double(), x.double().abs()
    pruned = magnitude(weight, sparsity=0.7)
    ones = torch.ones(200, 1, dtype=torch.float64)
    best = torch.linalg.lstsq(ones, ((weight - pruned) @ x).T).solution[0]
    torch.testing.assert_close(bias_correction(weight, pruned, x.mean(1)), best)


def test_by_hand_and_dtype():
    weight, pruned = torch.tensor([[1.0, 2.0]]).bfloat16(), torch.tensor([[0.0, 2.0]]).bfloat16()
    shift = bias_correction(weight, pruned, torch.tensor([10.0, 1.0]))
    assert shift.tolist() == [10] and shift.dtype == torch.float64
    shift = bias_correction(weight, pruned, torch.tensor([10.0, 1.0]), corrected_input_mean=torch.tensor([8.0, 3.0]))
    assert shift.tolist() == [12 - 6]


def test_bad_input(as_user):
    weight = torch.ones(2, 3)
    with pytest.raises(ValueError, match="corrected must be"):
        bias_correction(weight, torch.ones(3, 2), torch.ones(3))
    with pytest.raises(ValueError, match=r"input_mean must be \(3,\)"):
        bias_correction(weight, weight, torch.ones(2))
    with pytest.raises(ValueError, match=r"corrected_input_mean must be \(3,\)"):
        bias_correction(weight, weight, torch.ones(3), corrected_input_mean=torch.ones(3, 1))
    with pytest.raises(ValueError, match="input_mean holds"):
        bias_correction(weight, weight, torch.ones(3) / 0)
    with pytest.raises(ValueError, match="corrected holds"):
        bias_correction(weight, weight / 0, torch.ones(3))
