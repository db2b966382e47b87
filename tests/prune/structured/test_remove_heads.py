import copy

import pytest
import torch
from torch import nn

from mlcomp.models import byte_lm
from mlcomp.prune import attention_heads, remove_heads
from mlcomp.prune.structured.attention_heads import inputs_masked
from tests.prune.structured.nets import Attention, run, seeded
from tests.prune.structured.test_attention_heads import Fixed
from tests.prune.structured.test_remove_channels import transformer

TOKENS = torch.arange(10).reshape(2, 5)
EXACT = {"rtol": 0, "atol": 1e-11}  # float64, sums in another order


def without(model, heads, counts):
    """The whole model, with the columns of these heads in the output projection at zero."""
    model = copy.deepcopy(model)
    for name, numbers in heads.items():
        weight = model.get_submodule(name).weight.data
        turned = not isinstance(model.get_submodule(name), nn.Linear)  # transformers' Conv1D
        size = weight.shape[0 if turned else 1] // counts[name]
        for head in numbers:
            weight.narrow(0 if turned else 1, head * size, size).zero_()
    return model


def check(model, batch, heads, tolerance=EXACT):
    counts, before = attention_heads(model, batch), run(model, batch)
    small = remove_heads(model, heads, batch)
    expected = run(without(model, heads, counts), batch)
    torch.testing.assert_close(run(small, batch), expected, **tolerance)
    masks = {name: torch.tensor([float(h not in gone) for h in range(counts[name])]) for name, gone in heads.items()}
    with inputs_masked(model, masks):
        torch.testing.assert_close(run(model, batch), expected, **tolerance)
    assert torch.equal(run(model, batch), before)  # the masks are gone, the model is what it was
    assert (expected - before).abs().max() > 1e-6
    left = attention_heads(small, batch)
    assert left == {name: count - len(heads.get(name, ())) for name, count in counts.items()}
    return small


def test_bytes():
    model = seeded(lambda: byte_lm(64))
    assert attention_heads(model, TOKENS) == {f"blocks.{i}.out": 4 for i in range(4)}
    small = check(model, TOKENS, {"blocks.0.out": [0, 3], "blocks.2.out": [2], "blocks.3.out": [0, 1, 2]})
    assert small.blocks[0].qkv.weight.shape == (96, 64) and small.blocks[3].out.weight.shape == (64, 16)
    assert torch.equal(small.blocks[2].out.weight, model.blocks[2].out.weight[:, [*range(32), *range(48, 64)]])
    assert sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in small.parameters()) == 6 * 4 * 16 * 64


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("Bert", {"encoder.layer.0.attention.output.dense": [1, 2]}),
        ("GPT2", {"transformer.h.0.attn.c_proj": [3], "transformer.h.1.attn.c_proj": [0, 1]}),
        ("Llama", {"model.layers.0.self_attn.o_proj": [3, 4, 5]}),  # a whole key–value group
        ("Llama", {"model.layers.0.self_attn.o_proj": [0, 5], "model.layers.1.self_attn.o_proj": [1, 2, 4, 3]}),
        ("Qwen2", {"model.layers.1.self_attn.o_proj": [0, 1, 2, 4]}),  # a group, and one query head of the other
    ],
)
def test_transformers(name, heads):
    model = transformer(name)
    padded = {"input_ids": TOKENS, "attention_mask": torch.tensor([[1] * 5, [1] * 3 + [0] * 2])}
    # Under a mask transformers copies keys and values for their readers. Its RMSNorm computes in float32.
    check(model, padded, heads, {"rtol": 0, "atol": 1e-6})
    small = check(model, {"input_ids": TOKENS}, heads, {"rtol": 0, "atol": 1e-6})
    if name != "Bert":
        assert small.generate(TOKENS, max_new_tokens=3, do_sample=False).shape == (2, 8)


def test_a_configuration_that_can_state_the_new_numbers_does():
    model, batch = transformer("Llama"), {"input_ids": TOKENS}
    small = remove_heads(model, {f"model.layers.{i}.self_attn.o_proj": [i, 4] for i in range(2)}, batch)
    assert (small.config.num_attention_heads, small.config.num_key_value_heads, small.config.head_dim) == (4, 2, 8)
    again = type(small)(small.config).double().eval()
    again.load_state_dict(small.state_dict())
    torch.testing.assert_close(run(again, batch), run(small, batch), rtol=0, atol=1e-6)
    cached = small.generate(TOKENS, max_new_tokens=4, do_sample=False)
    assert torch.equal(cached, small.generate(TOKENS, max_new_tokens=4, do_sample=False, use_cache=False))


def test_heads_of_one_matrix_go_by_key_value_groups():
    model = seeded(Attention)
    check(model, TOKENS, {"out": [2, 3]})
    with pytest.raises(ValueError, match=r"only whole key–value groups can be removed: \[\[0, 1\], \[2, 3\]\]"):
        remove_heads(model, {"out": [0, 2]}, TOKENS)


def test_bad_input(as_user):
    model, name = transformer("Llama"), "model.layers.0.self_attn.o_proj"
    batch = {"input_ids": TOKENS}
    for heads in ([6], [-1], [True], [0.0]):
        with pytest.raises(ValueError, match="are whole numbers from 0 to 5, got"):
            remove_heads(model, {name: heads}, batch)
    with pytest.raises(ValueError, match="stands twice"):
        remove_heads(model, {name: [1, 1]}, batch)
    with pytest.raises(ValueError, match=r"at least one head of .* has to stay"):
        remove_heads(model, {name: range(6)}, batch)
    with pytest.raises(ValueError, match="'lm_head' is no output projection of heads; these are"):
        remove_heads(model, {"lm_head": [0]}, batch)
    with pytest.raises(
        ValueError, match=r"equally many query heads, and of \[\[0, 1, 2\], \[3, 4, 5\]\] .* \[2, 3\]"
    ):
        remove_heads(model, {name: [0]}, batch)
    with pytest.raises(ValueError, match="only whole key–value groups"):
        remove_heads(Fixed(eager=False), {"out": [0]}, torch.rand(2, 4, 6))
