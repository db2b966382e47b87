import math

import pytest
import torch
from torch import nn

from mlcomp.prune import cats, relufication
from tests.prune.dynamic.gated import MLP, batches, model


@pytest.mark.parametrize("shift", [0.0, 0.7, -0.2])
def test_it_is_the_formula_written_out(shift):
    net, tokens = model(), batches()[0]
    got = relufication(net, shift=shift)
    with torch.no_grad():
        x = net.embedding(tokens)
        for mlp in (net.first, net.second):
            a, u = mlp.gate_proj(x), mlp.up_proj(x)
            x = x + torch.where(a > shift, a - shift, 0.0) * u @ mlp.down_proj.weight.T
        torch.testing.assert_close(got(tokens), x, rtol=0, atol=1e-12)
        assert type(net.first) is MLP and not torch.allclose(net(tokens), x, atol=1e-2)


def test_a_model_with_relu_stays_what_it_is():
    net, tokens = model(nn.ReLU()), batches()[0]
    with torch.no_grad():
        assert torch.equal(relufication(net)(tokens), net(tokens))


def test_it_can_be_trained_on_and_takes_thresholds():
    net = relufication(model())
    net(batches()[0]).square().mean().backward()
    assert all(p.grad is not None for p in net.parameters())
    again = cats(net, batches(), sparsity=0.9)
    with torch.no_grad():  # the activation stays ReLU
        x = again.embedding(batches()[0])
        assert float(again.first.act_fn(again.first.gate_proj(x)).min()) == 0.0


def test_bad_input(as_user):
    for shift in (math.nan, math.inf, "0"):
        with pytest.raises(ValueError, match="shift must lie in"):
            relufication(model(), shift=shift)
    with pytest.raises(ValueError, match="the model has no gated MLP"):
        relufication(nn.Sequential(nn.Linear(2, 2)))
