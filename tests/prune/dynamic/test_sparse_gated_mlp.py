import math

import pytest
import torch
from torch.nn import functional as F

from mlcomp.prune import sparse_gated_mlp


def weights(dtype=torch.float64, n=3):
    g = torch.Generator().manual_seed(0)
    shapes = ((n, 6), (10, 6), (10, 6), (4, 10))
    return [torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype) for shape in shapes]


def by_hand(x, gate, up, down, threshold):
    """One product at a time, in Python's own floats."""
    rows = []
    for token in x.tolist():
        y = [0.0] * len(down)
        for j in range(len(gate)):
            a = sum(w * t for w, t in zip(gate[j].tolist(), token, strict=True))
            v = a / (1 + math.exp(-a))
            if abs(v) >= threshold:
                u = sum(w * t for w, t in zip(up[j].tolist(), token, strict=True))
                y = [old + v * u * float(row[j]) for old, row in zip(y, down, strict=True)]
        rows.append(y)
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.27, 0.6, 2.0, 1e9])
def test_it_is_the_formula_written_out(threshold):
    x, gate, up, down = weights()
    got = sparse_gated_mlp(x, gate, up, down, threshold)
    torch.testing.assert_close(got, by_hand(x, gate, up, down, threshold), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_dense_mlp_with_zeros(dtype):
    """float32: sums of ten terms in another order; bfloat16 has eight bits, and sums are rounded to it thrice."""
    x, gate, up, down = weights(dtype)
    v = F.silu(x @ gate.T)
    dense = (v.masked_fill(v.abs() < 0.3, 0) * (x @ up.T)) @ down.T
    got = sparse_gated_mlp(x, gate, up, down, 0.3)
    assert got.dtype == dtype
    torch.testing.assert_close(got, dense, rtol=1e-5, atol=1e-5 if dtype == torch.float32 else 0.25)


def test_what_is_not_needed_is_not_read():
    x, gate, up, down = weights(n=1)
    v = F.silu(x @ gate.T)[0]
    idle = v.abs() < 0.3
    assert 0 < idle.sum() < len(idle)
    want = sparse_gated_mlp(x, gate, up, down, 0.3)
    up[idle], down[:, idle] = math.nan, math.inf
    assert torch.equal(sparse_gated_mlp(x, gate, up, down, 0.3), want)
    with pytest.raises(ValueError, match="the output holds"):
        sparse_gated_mlp(x, gate, up, down, 0.0)


def test_the_threshold_itself_is_kept_and_infinity_leaves_nothing():
    x, gate, up, down = weights(n=1)
    v = F.silu(x @ gate.T)[0]
    smallest = float(v.abs().min())
    assert torch.equal(sparse_gated_mlp(x, gate, up, down, smallest), sparse_gated_mlp(x, gate, up, down, 0.0))
    nothing = sparse_gated_mlp(x, gate, up, down, math.inf)
    assert nothing.shape == (1, 4) and not nothing.any()


def test_a_transposed_view_of_down_gives_the_same():
    x, gate, up, down = weights()
    by_neuron = down.T.contiguous()
    assert torch.equal(sparse_gated_mlp(x, gate, up, by_neuron.T, 0.2), sparse_gated_mlp(x, gate, up, down, 0.2))


def test_bad_input(as_user):
    x, gate, up, down = weights()
    for bad, words in (
        ((x[0], gate, up, down, 0.1), r"must be \(n, inp\)"),
        ((x[:, :5], gate, up, down, 0.1), r"must be \(n, inp\)"),
        ((x, gate, up[:9], down, 0.1), r"must be \(n, inp\)"),
        ((x, gate, up, down.T, 0.1), r"must be \(n, inp\)"),
        ((x[:0], gate, up, down, 0.1), r"must be \(n, inp\)"),
        ((x, gate, up, down, -0.1), "threshold must lie in"),
        ((x, gate, up, down, math.nan), "threshold must lie in"),
        ((x * math.nan, gate, up, down, 0.1), "x holds 18 NaN"),
        ((x, gate * math.nan, up, down, 0.1), r"SiLU\(x·gate\) holds"),
    ):
        with pytest.raises(ValueError, match=words):
            sparse_gated_mlp(*bad)
    for bad, words in (
        ((x, gate.float(), up, down, 0.1), r"gate must be torch\.float64 like x"),
        ((x, gate, up, down.long(), 0.1), "down must be floating point"),
        ((x.tolist(), gate, up, down, 0.1), r"x must be a torch\.Tensor"),
    ):
        with pytest.raises(TypeError, match=words):
            sparse_gated_mlp(*bad)
