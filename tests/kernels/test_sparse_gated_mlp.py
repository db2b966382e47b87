import pytest
import torch
from torch.nn import functional as F

from mlcomp.kernels.launch import INTERPRETED
from mlcomp.kernels.sparse_gated_mlp import sparse_gated_mlp
from mlcomp.prune import sparse_gated_mlp as reference

BOUND = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
DTYPES = [
    torch.float32,
    torch.float16,
    pytest.param(torch.bfloat16, marks=pytest.mark.skipif(INTERPRETED, reason="needs a GPU")),
]


@pytest.fixture
def operands(random):
    def make(n, inp, hidden, out, dtype=torch.float32):
        shapes = ((n, inp), (hidden, inp), (hidden, inp), (hidden, out))
        x, gate, up, down = (random(*s, dtype=torch.float32, seed=i) / s[1] ** 0.5 for i, s in enumerate(shapes))
        return [t.to(dtype) for t in (x * inp**0.5, gate, up, down)]

    return make


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threshold", [0, 0.3, 1e9])
@pytest.mark.parametrize("shape", [(1, 64, 128, 64), (3, 33, 70, 130), (2, 5, 1, 1), (1, 1100, 40, 9)])
def test_equals_the_dense_mlp_with_zeros(operands, shape, threshold, dtype):
    x, gate, up, down = operands(*shape, dtype)
    v = F.silu(x @ gate.T)
    h = v.masked_fill(v.abs() < threshold, 0).double() * (x.double() @ up.double().T)
    want = h @ down.double()
    y = sparse_gated_mlp(x, gate, up, down.T, threshold)
    assert y.dtype == dtype and y.shape == want.shape
    assert (y.double() - want).norm() <= BOUND[dtype] * want.norm() + 1e-9
    same = reference(x, gate, up, down.T, threshold)
    assert (y.double() - same.double()).norm() <= 3 * BOUND[dtype] * want.norm() + 1e-9


def test_weights_of_inactive_neurons_are_not_read(operands):
    x, gate, up, down = operands(1, 32, 50, 20)
    v = F.silu(x @ gate.T)[0]
    out = v.abs() < 0.2
    assert 5 < int(out.sum()) < 45
    want = sparse_gated_mlp(x, gate, up, down.T, 0.2)
    up[out], down[out] = float("nan"), float("nan")
    assert torch.equal(sparse_gated_mlp(x, gate, up, down.T, 0.2), want)


def test_a_neuron_at_the_threshold_is_active(operands):
    x, gate, up, down = operands(1, 32, 50, 20)
    v = F.silu(x @ gate.T)[0].abs()
    for threshold in v[:3].tolist():
        want = reference(x, gate, up, down.T, threshold)
        torch.testing.assert_close(sparse_gated_mlp(x, gate, up, down.T, threshold), want, rtol=1e-5, atol=1e-6)
        less = reference(x, gate, up, down.T, threshold * (1 + 1e-6))
        assert not torch.allclose(less, want, rtol=1e-5, atol=1e-6)


def test_shares_of_the_neurons_as_on_a_gpu(operands, monkeypatch):
    monkeypatch.setattr("mlcomp.kernels.sparse_gated_mlp.INTERPRETED", False)
    x, gate, up, down = operands(2, 20, 70, 30)
    want = reference(x, gate, up, down.T, 0.3)
    torch.testing.assert_close(sparse_gated_mlp(x, gate, up, down.T, 0.3), want, rtol=1e-5, atol=1e-6)


def test_bad_input(operands, as_user):
    x, gate, up, down = operands(1, 32, 50, 20)
    with pytest.raises(ValueError, match="must be"):
        sparse_gated_mlp(x, gate, up, down, 0.1)
    with pytest.raises(ValueError, match="threshold"):
        sparse_gated_mlp(x, gate, up, down.T, -1)
    with pytest.raises(TypeError, match="up"):
        sparse_gated_mlp(x, gate, up.half(), down.T, 0.1)
