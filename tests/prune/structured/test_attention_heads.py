import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mlcomp.models import byte_lm
from mlcomp.prune import attention_heads
from mlcomp.prune.structured.attention_heads import inputs_masked
from tests.prune.structured.nets import Attention, run, seeded
from tests.prune.structured.test_remove_channels import transformer

TOKENS = torch.arange(10).reshape(2, 5)
EXACT = {"rtol": 0, "atol": 1e-11}  # float64, sums in another order


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: seeded(lambda: byte_lm(64)), {f"blocks.{i}.out": 4 for i in range(4)}),
        (lambda: seeded(Attention), {"out": 4}),
        (lambda: transformer("Llama"), {f"model.layers.{i}.self_attn.o_proj": 6 for i in range(2)}),
        (lambda: transformer("GPT2"), {f"transformer.h.{i}.attn.c_proj": 4 for i in range(2)}),
        (lambda: transformer("Bert"), {f"encoder.layer.{i}.attention.output.dense": 4 for i in range(2)}),
    ],
)
def test_the_layers_that_read_heads(make, expected):
    assert attention_heads(make(), TOKENS) == expected


def test_masks_of_each_example():
    model = seeded(lambda: byte_lm(16, pretrained=False))
    mask = torch.tensor([[0.5], [2.0]], dtype=torch.float64)
    with inputs_masked(model, {"blocks.1.out": mask}):
        both = run(model, TOKENS)
    for factor, tokens, out in zip((0.5, 2.0), TOKENS, both, strict=True):
        scaled = copy.deepcopy(model)
        scaled.blocks[1].out.weight.data *= factor
        torch.testing.assert_close(out, run(scaled, tokens[None])[0], **EXACT)


class Fixed(nn.Module):
    """Its code states the number of heads, so none can go; ``eager`` hides them."""

    def __init__(self, eager: bool):
        super().__init__()
        self.eager, self.qkv, self.out = eager, nn.Linear(6, 18), nn.Linear(6, 6)

    def forward(self, x):
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 3).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.mT).softmax(-1) @ v if self.eager else F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))


def test_bad_input(as_user):
    model, name = transformer("Llama"), "model.layers.0.self_attn.o_proj"
    batch = {"input_ids": TOKENS}
    x = torch.rand(2, 4, 6)
    assert attention_heads(Fixed(eager=False), x) == {"out": 2}
    with pytest.raises(ValueError, match=r"no layer reads the heads of F.scaled_dot_product_attention"):
        attention_heads(Fixed(eager=True), x)
    with pytest.raises(ValueError, match="has no module 'there'"), inputs_masked(model, {"there": torch.ones(2)}):
        pass
    with pytest.raises(ValueError, match=r"must be \(groups,\)"), inputs_masked(model, {name: torch.ones(1, 1, 2)}):
        pass
    with (
        pytest.raises(ValueError, match="5 groups do not divide the 48"),
        inputs_masked(model, {name: torch.ones(5)}),
    ):
        run(model, batch)
