import json

import pytest
import torch
from torch import nn

from mlcomp.layerwise import load, save
from mlcomp.models import mlp
from mlcomp.prune import dependency_groups, llm_pruner, load_pruned, remove_channels
from mlcomp.prune.structured.load_pruned import take_shapes
from tests.prune.structured.nets import Grouped, Joined, run, seeded
from tests.prune.structured.test_llm_pruner import generated
from tests.prune.structured.test_remove_channels import IMAGES, TOKENS, some, transformer


def same(a: nn.Module, b: nn.Module) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize("name", ["Llama", "Qwen2", "GPT2", "Bert"])
@pytest.mark.parametrize("uniform", [False, True])
def test_there_and_back(tmp_path, name, uniform):
    model = transformer(name).float()
    groups = dependency_groups(model, {"input_ids": TOKENS})
    groups = [g for g in groups if not g.averaged][0 if uniform else 1 :]
    small = remove_channels(model, {g: some(g) for g in groups})
    save(small, {}, tmp_path / "small")
    again = load_pruned(tmp_path / "small")
    assert same(small, again) and not again.training
    assert torch.equal(run(small, TOKENS), run(again, TOKENS))
    if name != "Bert":
        for mine, theirs in zip(generated(small), generated(again), strict=True):
            assert torch.equal(mine, theirs)
    if name == "Llama":  # tied, as before
        assert again.lm_head.weight is again.model.embed_tokens.weight
        assert [(b.mlp.gate_proj.out_features, b.mlp.down_proj.in_features) for b in again.model.layers] == [
            (26, 26)
        ] * 2
    if name == "GPT2" and not uniform:
        assert [b.attn.num_heads for b in again.transformer.h] == [4, 2]
    if not uniform:
        with pytest.raises(ValueError, match="saved from another model"):
            load(tmp_path / "small")


def test_twice_pruned_and_not_at_all(tmp_path):
    model = transformer("Llama").float()
    save(model, {}, tmp_path / "whole")
    whole = load_pruned(tmp_path / "whole")
    assert same(model, whole)
    once = llm_pruner(whole, [TOKENS], share=0.3).model
    twice = llm_pruner(once, [TOKENS], share=0.3, groups=dependency_groups(once, TOKENS)[2:3]).model
    save(twice, {}, tmp_path / "twice")
    again = load_pruned(tmp_path / "twice")
    assert same(twice, again)
    again.requires_grad_(True)(TOKENS).logits.sum().backward()  # it can be trained


@pytest.mark.parametrize("kind", [Joined, Grouped])
def test_convolutions_in_groups(kind):
    """A depthwise convolution has as many groups as channels; another keeps its number of groups."""
    model = seeded(kind)
    small = remove_channels(model, {g: some(g) for g in dependency_groups(model, IMAGES) if not g.averaged})
    again = seeded(kind, seed=1)
    take_shapes(again, {name: tuple(value.shape) for name, value in small.state_dict().items()})
    again.load_state_dict(small.state_dict())
    assert torch.equal(run(small, IMAGES), run(again, IMAGES))
    assert [(m.groups, m.out_channels) for m in small.modules() if isinstance(m, nn.Conv2d)] == [
        (m.groups, m.out_channels) for m in again.modules() if isinstance(m, nn.Conv2d)
    ]


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="holds no saved model"):
        load_pruned(tmp_path / "nowhere")
    net = mlp()
    save(net, {}, tmp_path / "net")
    with pytest.raises(ValueError, match="no library builds by name: remove the same channels"):
        load_pruned(tmp_path / "net")
    model = transformer("Llama").float()
    save(model, {}, tmp_path / "llama")
    path = tmp_path / "llama" / "mlcomp.json"
    about = json.loads(path.read_text())
    about["tensors"]["model.norm.weight"]["shape"] = [48, 1]
    path.write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"norm.weight is \(48,\) here, \(48, 1\) there"):
        load_pruned(tmp_path / "llama")
