import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mlcomp.prune import (
    activation_sparsity,
    activation_thresholds,
    cats,
    relufication,
    sparse_gated_mlp,
    threshold_mlps,
)
from tests.prune.dynamic.gated import HIDDEN, MLP, WIDTH, batches, model


@torch.no_grad()
def seen(net, tokens, on):
    """What the two MLPs compute, without hooks."""
    x = net.embedding(tokens)
    found = {}
    for name, mlp in (("first", net.first), ("second", net.second)):
        v, u = F.silu(x @ mlp.gate_proj.weight.T), x @ mlp.up_proj.weight.T
        found[name] = v if on == "gate" else v * u
        x = x + (v * u) @ mlp.down_proj.weight.T
    return found


@pytest.mark.parametrize("on", ["gate", "product"])
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
def test_thresholds_are_quantiles_of_what_the_model_computes(on, sparsity):
    net, tokens = model(), torch.cat(batches())
    got = activation_thresholds(net, batches(), sparsity=sparsity, on=on)
    for name, values in seen(net, tokens, on).items():
        size = values.abs().flatten()
        want = np.quantile(size.numpy(), sparsity, method="higher")  # the next value above, as counted from 0
        assert got[name] == pytest.approx(want, rel=2e-2)
        below = int((size < got[name]).sum())
        # exactly the share, but for tokens that come twice and so have equal activations
        assert math.floor(sparsity * len(size) + 0.5) - 12 <= below <= math.floor(sparsity * len(size) + 0.5)


def test_thresholds_of_distinct_values_leave_exactly_the_share_below():
    net = model()
    tokens = [torch.arange(32).view(4, 8)]
    for sparsity in (0.0, 0.001, 0.25, 0.5, 0.999, 1.0):
        got = activation_thresholds(net, tokens, sparsity=sparsity)
        for name, values in seen(net, tokens[0], "gate").items():
            size = values.abs()
            assert int((size < got[name]).sum()) == math.floor(sparsity * size.numel() + 0.5)
        # a value that is the threshold itself stays
        zeros = activation_sparsity(cats(net, tokens, sparsity=sparsity), tokens)["first"]
        assert zeros == math.floor(sparsity * 32 * HIDDEN + 0.5) / (32 * HIDDEN)
    assert set(activation_thresholds(net, tokens, sparsity=0.0).values()) == {0.0}
    assert set(activation_thresholds(net, tokens, sparsity=1.0).values()) == {math.inf}


@pytest.mark.parametrize("on", ["gate", "product"])
def test_the_model_computes_with_small_activations_at_zero(on):
    net, tokens = model(), batches()[0]
    thresholds = {"first": 0.2, "second": 0.5}
    got = threshold_mlps(net, thresholds, on=on)
    with torch.no_grad():
        x = net.embedding(tokens).flatten(0, 1)
        for name, t in thresholds.items():
            mlp = getattr(net, name)
            v, u = F.silu(x @ mlp.gate_proj.weight.T), x @ mlp.up_proj.weight.T
            size = v.abs() if on == "gate" else (v * u).abs()
            x = x + torch.where(size >= t, v * u, 0.0) @ mlp.down_proj.weight.T
        torch.testing.assert_close(got(tokens).flatten(0, 1), x, rtol=0, atol=1e-12)


def test_the_skipping_mlp_computes_what_the_masked_model_does():
    net = threshold_mlps(model(), {"first": 0.3})
    x = net.embedding(batches()[0]).detach().flatten(0, 1)
    layers = [p.weight.detach() for p in (net.first.gate_proj, net.first.up_proj, net.first.down_proj)]
    with torch.no_grad():
        torch.testing.assert_close(sparse_gated_mlp(x, *layers, 0.3), net.first(x), rtol=0, atol=1e-12)


def test_in_one_call_and_what_it_leaves_alone():
    net = model().train()
    net.first.eval()
    state = copy.deepcopy(net.state_dict())
    got = cats(net, batches(), sparsity=0.7)
    assert list(got.state_dict()) == list(state)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert type(net.first) is MLP and net.training and not net.first.training and not got.first.training
    shares = activation_sparsity(got, batches())
    assert shares["first"] == pytest.approx(0.7, abs=0.01)  # its input has not changed
    assert 0.5 < shares["second"] < 0.9
    for on in ("gate", "product"):
        assert cats(net, batches(), sparsity=0.0, on=on)(batches()[0]).equal(net(batches()[0]))
    with torch.no_grad():
        nothing = cats(net, batches(), sparsity=1.0)(batches()[0])
    assert torch.equal(nothing, net.embedding(batches()[0]))


def test_new_thresholds_replace_old_ones():
    net = threshold_mlps(model(), {"first": 5.0, "second": 0.1}, on="product")
    again = threshold_mlps(net, {"first": 0.0, "second": 0.0})
    with torch.no_grad():
        assert torch.equal(again(batches()[0]), model()(batches()[0]))
    # thresholds are those of the dense activations, also where v · u is thresholded already
    assert activation_thresholds(net, batches(), sparsity=0.5)["first"] == pytest.approx(
        activation_thresholds(model(), batches(), sparsity=0.5)["first"]
    )


def test_padding_does_not_count():
    net, tokens = model(), torch.cat(batches())
    padded, mask = F.pad(tokens, (0, 30)), F.pad(torch.ones_like(tokens), (0, 30))
    batch = [{"tokens": padded, "attention_mask": mask}]
    want = activation_thresholds(net, [tokens], sparsity=0.5)
    assert activation_thresholds(net, batch, sparsity=0.5, valid="attention_mask") == want
    assert activation_thresholds(net, batch, sparsity=0.5)["first"] != want["first"]
    sparse = threshold_mlps(net, want)
    assert activation_sparsity(sparse, batch, valid="attention_mask") == activation_sparsity(sparse, [tokens])


def test_sparsity_counts_zeros_over_all_batches():
    net = threshold_mlps(model(), {"first": 0.4})
    sizes = torch.cat([seen(net, b, "gate")["first"].abs().flatten() for b in batches()])
    got = activation_sparsity(net, batches())
    assert got == {"first": pytest.approx(float((sizes < 0.4).double().mean())), "second": 0.0}
    relu = relufication(model())
    with torch.no_grad():
        x = relu.embedding(torch.cat(batches()))
        share = float((x @ relu.first.gate_proj.weight.T <= 0).double().mean())
    assert activation_sparsity(relu, batches())["first"] == pytest.approx(share)


def test_a_real_llama_of_transformers():
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": WIDTH, "intermediate_size": HIDDEN, "num_attention_heads": 2, "num_hidden_layers": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=32, **size)).eval()
    got = cats(llama, batches(), sparsity=0.5)
    names = ["model.layers.0.mlp", "model.layers.1.mlp"]
    shares = activation_sparsity(got, batches())
    assert list(shares) == names and all(s == pytest.approx(0.5, abs=0.05) for s in shares.values())
    assert list(got.state_dict()) == list(llama.state_dict())
    assert "threshold=" in repr(got) and activation_sparsity(llama, batches())[names[0]] == 0


def test_bad_input(as_user):
    net = model()
    for call, words in (
        (lambda: cats(net, batches(), sparsity=1.5), "sparsity is the share of zeros"),
        (lambda: cats(net, batches(), sparsity=0.5, on="up"), "on must be one of gate, product"),
        (lambda: cats(net, [], sparsity=0.5), "batches is empty"),
        (lambda: cats(nn.Linear(2, 2), [torch.ones(1, 2)], sparsity=0.5), "the model has no gated MLP"),
        (lambda: threshold_mlps(net, {"third": 0.1}), "'third', which is no gated MLP; these are first, second"),
        (lambda: threshold_mlps(net, {"first": -0.1}), r"thresholds\['first'\] must lie in"),
        (lambda: threshold_mlps(net, {"first": math.nan}), r"thresholds\['first'\] must lie in"),
        (lambda: activation_sparsity(net, []), "batches is empty"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(TypeError, match="wrap it as"):
        activation_thresholds(net, batches()[0], sparsity=0.5)
    net.first.gate_proj.weight.data[0, 0] = math.nan
    with pytest.raises(ValueError, match="the activations of 'first' hold"):
        activation_thresholds(net, batches(), sparsity=0.5)


def test_an_mlp_that_computes_something_else_is_refused(as_user):
    class Scaled(MLP):
        def forward(self, x):
            return 2 * super().forward(x)

    net = model()
    net.second = Scaled(nn.SiLU()).double()
    with pytest.raises(ValueError, match=r"'second' \(Scaled\) computes something else"):
        threshold_mlps(net, {"first": 0.1})
