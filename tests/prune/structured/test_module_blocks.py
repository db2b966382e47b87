import pytest
import torch

from mlcomp.models import byte_lm
from mlcomp.prune import attention_heads, module_blocks, module_utility, next_token_losses
from tests.prune.structured.nets import run, seeded
from tests.prune.structured.test_remove_channels import transformer
from tests.prune.structured.test_remove_heads import without

TOKENS = torch.randint(50, (3, 8), generator=torch.Generator().manual_seed(0))


def modules_of(model, heads, hidden, count):
    batch = TOKENS[:1]
    return module_blocks(model, batch, heads | dict.fromkeys(hidden, count))


def test_masked_is_removed():
    model = seeded(lambda: byte_lm(32))
    heads = attention_heads(model, TOKENS[:1])
    modules = modules_of(model, heads, [f"blocks.{i}.down" for i in range(4)], 8)
    assert modules.layers == tuple(i for i in range(4) for _ in range(2)) + tuple(
        i for i in range(4, 8) for _ in range(8)
    )
    assert modules.sizes.tolist() == [4 * 16 * 32] * 8 + [2 * 16 * 32] * 32
    removed = torch.zeros(40, dtype=torch.bool)
    removed[[1, 6, 8, 9, 22, 39]] = True
    small = modules.remove(model, removed)
    gone = {
        "blocks.0.out": [1],
        "blocks.3.out": [0],
        "blocks.0.down": [0, 1],
        "blocks.1.down": [6],
        "blocks.3.down": [7],
    }
    expected = run(without(model, gone, modules.blocks), TOKENS)
    torch.testing.assert_close(run(small, TOKENS), expected, rtol=0, atol=1e-11)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, small))
    assert before - after == int(modules.sizes[removed].sum())
    utility = module_utility(model, modules, [TOKENS], next_token_losses)
    loss = float(next_token_losses(small, TOKENS).mean().detach())
    assert utility(removed) == pytest.approx(-loss, abs=1e-6)
    assert utility(torch.zeros(40, dtype=torch.bool)) == pytest.approx(
        -float(next_token_losses(model, TOKENS).mean().detach())
    )


def test_modules_of_grouped_queries():
    model = transformer("Llama")
    heads = {f"model.layers.{i}.self_attn.o_proj": 2 for i in range(2)}  # key–value heads
    modules = modules_of(model, heads, ["model.layers.0.mlp.down_proj"], 4)
    removed = torch.tensor([True, False, False, False, False, True, False, False])
    small = modules.remove(model, removed)
    masks = modules.masks(removed)
    gone = {name: (mask == 0).nonzero().flatten().tolist() for name, mask in masks.items()}
    expected = run(without(model, gone, modules.blocks), TOKENS)
    torch.testing.assert_close(run(small, TOKENS), expected, rtol=0, atol=1e-6)  # RMSNorm in float32
    with pytest.raises(ValueError, match="6 blocks do not divide the 2 channels"):
        module_blocks(model, TOKENS[:1], attention_heads(model, TOKENS[:1]))


def test_no_gradients_are_kept():
    model = seeded(lambda: byte_lm(16)).train()
    modules = modules_of(model, attention_heads(model, TOKENS[:1]), ["blocks.0.down"], 4)

    def losses(model, batch):
        found = next_token_losses(model, batch)
        assert not found.requires_grad and not model.training
        return found

    module_utility(model, modules, [TOKENS], losses)(torch.zeros(8, dtype=torch.bool))
    assert model.training and all(p.grad is None for p in model.parameters())


def test_bad_input(as_user):
    model = seeded(lambda: byte_lm(16))
    with pytest.raises(ValueError, match="no group holds"):
        module_blocks(model, TOKENS[:1], {"there": 1})
    with pytest.raises(ValueError, match="one-shot"):
        module_utility(
            model, module_blocks(model, TOKENS[:1], {"blocks.0.down": 4}), iter([TOKENS]), next_token_losses
        )
