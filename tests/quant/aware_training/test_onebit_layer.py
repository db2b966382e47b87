"""The trainable one-bit layer against loops and derivatives written out."""

import copy
import math

import pytest
import torch
from torch import nn

from mlcomp.quant import onebit_decompose, prepare_onebit
from mlcomp.quant.aware_training import OneBitLinear

X = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
EXACT = {"rtol": 1e-9, "atol": 1e-12}  # float64 rounding


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 4, bias=False)).double().eval()


def trained(**options):
    """A layer whose parameters have left their start."""
    layer = prepare_onebit(network(), **options)[0]
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def by_loops(layer, x):
    """y_i = g_i Σ_j ±h_j x_j; minus its mean, over its standard deviation; plus the bias."""
    x, rows, columns = x.tolist(), layer.rows.tolist(), layer.columns.tolist()
    y = []
    for g, row in zip(rows, layer.weight.tolist(), strict=True):
        y.append(g * sum((1 if w >= 0 else -1) * columns[j] * x[j] for j, w in enumerate(row)))
    if layer.norm:
        mean = sum(y) / len(y)
        variance = sum((v - mean) ** 2 for v in y) / len(y)
        y = [(v - mean) / math.sqrt(variance + 1e-5) for v in y]
    return [v + b for v, b in zip(y, layer.bias.tolist(), strict=True)]


@pytest.mark.parametrize("norm", [True, False])
def test_it_is_the_layer_written_out(norm):
    layer = trained(norm=norm)
    want = torch.tensor([by_loops(layer, x) for x in X], dtype=torch.float64)
    torch.testing.assert_close(layer(X), want, **EXACT)
    torch.testing.assert_close(layer(X.reshape(1, 5, 7)), want.reshape(1, 5, 6), **EXACT)


def test_the_gradients():
    """By hand: the signs' gradient times 1.001 − tanh², the vectors' as for any product; all reach the inputs."""
    layer, x = trained(norm=False), X.clone().requires_grad_()
    up = torch.randn(5, 6, dtype=torch.float64)
    layer(x).backward(up)
    s = torch.where(layer.weight >= 0, 1.0, -1.0).double()
    g, h, w = (p.detach() for p in (layer.rows, layer.columns, layer.weight))
    d = up * g  # by the product with the signs
    torch.testing.assert_close(layer.weight.grad, d.T @ (X * h) * (1.001 - w.tanh() ** 2), **EXACT)
    torch.testing.assert_close(layer.rows.grad, (up * ((X * h) @ s.T)).sum(0), **EXACT)
    torch.testing.assert_close(layer.columns.grad, (X * (d @ s)).sum(0), **EXACT)
    torch.testing.assert_close(x.grad, d @ s * h, **EXACT)


def test_before_training_it_is_the_decomposition():
    dense = network()
    before = copy.deepcopy(dense.state_dict())
    model = prepare_onebit(dense, norm=False)
    assert [type(m) for m in model] == [OneBitLinear, nn.Tanh, OneBitLinear]
    assert all(torch.equal(value, before[key]) for key, value in dense.state_dict().items())
    for i in (0, 2):
        dense[i].weight.data.copy_(onebit_decompose(dense[i].weight, dtype=torch.float32).dequantize())
    torch.testing.assert_close(model(X), dense(X), rtol=1e-5, atol=1e-6)  # the decoded weight is float32
    assert all(p.requires_grad for p in model.parameters())


def test_both_starts_compute_the_same_and_a_zero_is_positive():
    dense = network()
    dense[0].weight.data[0, :3] = 0
    own, small = (prepare_onebit(dense, start=start) for start in ("weight", "signs"))
    assert torch.equal(own(X), small(X))
    assert set(small[0].weight.abs().flatten().tolist()) == {0.01} and torch.equal(own[0].weight, dense[0].weight)
    assert (own[0].signs[0, :3] == 1).all() and (small[0].weight[0, :3] == 0.01).all()


def test_with_the_norm_the_size_of_the_values_does_not_matter():
    layer = trained()
    y = layer(X) - layer.bias
    torch.testing.assert_close(y.mean(1), torch.zeros(5, dtype=torch.float64), **EXACT)
    torch.testing.assert_close(y.var(1, unbiased=False), torch.ones(5, dtype=torch.float64), rtol=1e-3, atol=0)
    layer.rows.data *= 100
    torch.testing.assert_close(layer(X) - layer.bias, y, rtol=1e-3, atol=1e-4)  # but for the norm's 1e-5


def test_named_layers_modes_and_tied_weights():
    model = network()
    made = prepare_onebit(model.train(), ["2"])
    assert type(made[0]) is nn.Linear and type(made[2]) is OneBitLinear and made[2].training
    tied = nn.ModuleDict({"embedding": nn.Embedding(5, 6), "first": nn.Linear(6, 6), "head": nn.Linear(6, 5)})
    tied["head"].weight = tied["embedding"].weight
    made = prepare_onebit(tied)
    assert type(made["first"]) is OneBitLinear and made["head"].weight is made["embedding"].weight


def test_bad_input(as_user):
    model = network()
    for options, told in (
        ({"layers": ["1"]}, "is Tanh"),
        ({"layers": ["9"]}, "no layer"),
        ({"start": "zero"}, "start"),
    ):
        with pytest.raises(ValueError, match=told):
            prepare_onebit(model, **options)
    for wrong in (nn.Linear(2, 2), nn.Sequential(nn.Conv2d(1, 1, 2)), nn.MultiheadAttention(4, 2)):
        with pytest.raises(ValueError, match="for linear layers"):
            prepare_onebit(wrong)
    model[2].weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        prepare_onebit(model)
