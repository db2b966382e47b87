import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mlcomp.layerwise import collect_hessians, compress, layer_hessian
from mlcomp.obs import gptq
from mlcomp.quant import rtn


class Experts(nn.Module):
    """Three experts in one tensor; token t goes to expert t mod ``used``."""

    def __init__(self, used=3, turned=False):
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(3, 8, 6)), nn.Parameter(torch.randn(3, 6, 8))
        self.used, self.turned = used, turned

    def forward(self, x):
        y = torch.zeros_like(x)
        for i in range(self.used):
            rows = x[i :: self.used]
            inner = rows @ self.up[i].T if self.turned else F.linear(rows, self.up[i])
            y[i :: self.used] = F.linear(torch.relu(inner), self.down[i])
        return y


class Mixture(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.first, self.experts = nn.Linear(6, 6), Experts(**options)

    def forward(self, x):
        return self.experts(torch.tanh(self.first(x)))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("sequential", [False, True])
def test_each_expert_is_compressed_with_the_tokens_that_reach_it(turned, sequential):
    net, x = Mixture(turned=turned), torch.randn(60, 6)
    names = [f"experts.{key}.{i}" for key in ("up", "down") for i in range(3)]
    hidden = torch.tanh(net.first(x)).detach()
    found = collect_hessians(net, [x], names)
    for i in range(3):
        torch.testing.assert_close(found[f"experts.up.{i}"], layer_hessian(hidden[i::3].T), rtol=1e-4, atol=1e-4)
    seen = {}

    def method(weight, hessian):
        seen[tuple(weight.shape)] = seen.get(tuple(weight.shape), 0) + 1
        return gptq(weight, hessian, bits=3)

    result, report = compress(net, [x], method, sequential=sequential, progress=False)
    assert [row.name for row in report.rows] == ["first", *names] and not report.left
    assert all(row.status == "compressed" for row in report.rows) and report.covered > 0.97
    assert seen == {(6, 6): 1, (8, 6): 3, (6, 8): 3}
    if not sequential:
        expected = gptq(net.experts.up[1].detach(), layer_hessian(hidden[1::3].T), bits=3).dequantize()
        assert (result.experts.up[1] - expected).abs().max() < 1e-4
    assert all(len(torch.unique(row)) <= 8 for row in result.experts.down[2].detach())


def test_an_expert_without_a_token_is_a_matter_for_on_error():
    net, x = Mixture(used=2), torch.randn(20, 6)
    with pytest.raises(ValueError, match=r"'experts.up.2', 'experts.down.2'\] saw no sample"):
        compress(net, [x], functools.partial(gptq, bits=3), progress=False)
    result, report = compress(net, [x], functools.partial(gptq, bits=3), on_error="skip", progress=False)
    assert [row.name for row in report.skipped] == ["experts.up.2", "experts.down.2"]
    assert torch.equal(result.experts.up[2], net.experts.up[2]) and not torch.equal(result.experts.up, net.experts.up)


@pytest.mark.parametrize("sequential", [False, True])
def test_a_tensor_of_three_dimensions_that_is_no_mixture_has_a_line(sequential):
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.out = nn.Parameter(torch.randn(1, 5, 4)), nn.Linear(4, 2)

        def forward(self, x):
            return self.out(x + self.table)

    net = Positions()
    batches = [torch.randn(3, 5, 4)]
    result, report = compress(net, batches, functools.partial(rtn, bits=3), sequential=sequential, progress=False)
    assert [row.name for row in report.rows] == ["out"] and [left.name for left in report.left] == ["table"]
    assert "three dimensions" in report.left[0].reason and "table" in str(report)
    assert torch.equal(result.table, net.table)


@pytest.mark.slow
def test_a_mixture_of_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen2MoeConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, moe_intermediate_size=12, num_hidden_layers=1,
        shared_expert_intermediate_size=12, num_attention_heads=2, num_key_value_heads=1, num_experts=4,
        num_experts_per_tok=2, decoder_sparse_step=1, max_position_embeddings=32,
    )  # fmt: skip
    model = transformers.Qwen2MoeForCausalLM(config).eval()
    way = model.config._experts_implementation
    batches = [{"input_ids": torch.randint(0, 32, (8, 16))}]
    result, report = compress(model, batches, functools.partial(gptq, bits=4), progress=False, on_error="skip")
    experts = [row for row in report.rows if ".experts." in row.name]
    assert len(experts) == 8 and all(row.status == "compressed" for row in experts)
    assert model.config._experts_implementation == result.config._experts_implementation == way
    assert {left.name for left in report.left} >= {"model.embed_tokens.weight", "model.layers.0.mlp.gate.weight"}
    assert result(**batches[0]).logits.isfinite().all()
