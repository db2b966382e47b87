import copy
import functools

import pytest
import torch
from torch import nn

from mlcomp.layerwise import collect_hessians, compress, layer_hessian, layer_weights, with_weights
from mlcomp.layerwise.attention import attention_split, join_attention, split_attention
from mlcomp.quant import ptq, rtn

KINDS = [
    {},
    {"batch_first": True},
    {"bias": False},
    {"kdim": 5, "vdim": 3},
    {"add_bias_kv": True, "add_zero_attn": True},
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_split_attention_computes_what_torch_does(kind):
    whole = nn.ModuleList([nn.MultiheadAttention(8, 2, **kind).double()])
    q, k, v = (torch.randn(5, 3, whole[0].__dict__[n], dtype=torch.float64) for n in ("embed_dim", "kdim", "vdim"))
    batch, tokens = (5, 3) if kind.get("batch_first") else (3, 5)
    padding = torch.zeros(batch, tokens, dtype=torch.bool)
    padding[0, -1] = True
    expected = whole[0](q, k, v, key_padding_mask=padding)
    with attention_split(whole):
        assert type(whole[0]).__name__ == "SplitAttention"
        found = whole[0](q, k, v, key_padding_mask=padding)
    assert isinstance(whole[0], nn.MultiheadAttention)
    # Products with the identity are exact, so only the order of other sums may differ.
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("copied", [False, True])
def test_weights_changed_in_a_split_attention_stay_changed_when_it_is_joined(copied):
    net = nn.Sequential(nn.MultiheadAttention(6, 2, bias=False))
    split_attention(net)
    net = copy.deepcopy(net) if copied else net
    with torch.no_grad():
        net[0].k_proj.weight.fill_(3)
    net[0].v_proj.bias = nn.Parameter(torch.full((6,), 2.0))  # a correction gave it one
    join_attention(net)
    assert (net[0].in_proj_weight[6:12] == 3).all() and not (net[0].in_proj_weight[:6] == 3).any()
    assert torch.equal(net[0].in_proj_bias, torch.cat([torch.zeros(12), torch.full((6,), 2.0)]))


def encoder():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return nn.TransformerEncoder(layer, 1).eval()


def test_the_inputs_of_all_four_projections_are_seen():
    net, x = encoder(), torch.randn(4, 5, 16)
    found = collect_hessians(net, [x])
    attention = net.layers[0].self_attn
    for name in ("q_proj", "k_proj", "v_proj"):
        torch.testing.assert_close(found[f"layers.0.self_attn.{name}"], layer_hessian(x.reshape(-1, 16).T))
    before = copy.deepcopy(attention)
    with torch.no_grad():  # the attention's output before its last projection
        before.out_proj.weight.copy_(torch.eye(16))
        before.out_proj.bias.zero_()
        inner = before(x, x, x)[0]
    torch.testing.assert_close(
        found["layers.0.self_attn.out_proj"], layer_hessian(inner.reshape(-1, 16).T), rtol=1e-4, atol=1e-4
    )
    assert net.layers[0].self_attn is attention


def test_an_encoder_is_compressed_whole_and_runs():
    net, x = encoder(), torch.randn(4, 5, 16)
    result, report = compress(net, [x], functools.partial(rtn, bits=3), progress=False)
    assert len(report.rows) == 6 and not report.skipped and not report.left
    packed = result.layers[0].self_attn.in_proj_weight
    expected = rtn(net.layers[0].self_attn.in_proj_weight.detach(), bits=3).dequantize()
    torch.testing.assert_close(packed.detach(), expected, rtol=0, atol=0)
    assert isinstance(result.layers[0].self_attn, nn.MultiheadAttention) and result(x).shape == x.shape


@pytest.mark.parametrize("input_bits", [None, 8])
def test_ptq_of_an_encoder_uses_the_quantized_layers(input_bits):
    net, x = encoder(), torch.randn(4, 5, 16)
    mask = torch.zeros(4, 5, dtype=torch.bool)
    mask[1, 3:] = True
    result = ptq(net, [x], weight_bits=2, input_bits=input_bits)
    calls = []
    for module in result.model.modules():
        if type(module).__name__ == "FakeQuantized":
            module.register_forward_hook(lambda m, args, out: calls.append(m))
    with torch.no_grad():
        result.model(x)
        result.model(x, src_key_padding_mask=mask)
    result.model(x, src_key_padding_mask=mask)  # with gradients torch asks its fast path's other questions
    assert len(calls) == 3 * 6 and len(result.rows) == 6


def test_weights_as_a_mapping_hold_the_projections():
    net = encoder()
    weights = layer_weights(net)
    name = "layers.0.self_attn.v_proj"
    changed = with_weights(net, {name: torch.ones_like(weights[name])})
    packed = changed.layers[0].self_attn.in_proj_weight
    assert (packed[32:] == 1).all() and torch.equal(packed[:32], net.layers[0].self_attn.in_proj_weight[:32])


def test_an_attention_with_a_forward_of_its_own_is_left_alone():
    class Own(nn.MultiheadAttention):
        def forward(self, x):
            return super().forward(x, x, x)[0] + 1

    net = nn.Sequential(nn.Linear(8, 8), Own(8, 2))
    _, report = compress(net, [torch.randn(4, 3, 8)], functools.partial(rtn, bits=4), layers=["0"], progress=False)
    assert [row.name for row in report.rows if row.status == "compressed"] == ["0"]
    assert "1.in_proj_weight" in [left.name for left in report.left]
