import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mlcomp.data import committed_results, mnist5k
from mlcomp.metrics import accuracy
from mlcomp.models import convnet, mlp, vit
from mlcomp.models.pretrained import WEIGHTS

RESULTS = committed_results("small_nets")
NETWORKS = {"mlp": mlp, "convnet": convnet, "vit": vit}


@pytest.mark.parametrize("name", NETWORKS)
def test_held_out_accuracy_is_the_model_cards(name):
    """±0.002: 2 digits of the 1000. Another BLAS or processor rounds the logits differently, by 1e-6 of their size;
    only a digit whose two best logits are that close can change sides, and there are none to two of them."""
    stated = RESULTS[name]["accuracy_held_out"]
    assert accuracy(NETWORKS[name](), *mnist5k("held_out")) == pytest.approx(stated, abs=0.002)
    assert stated >= {"mlp": 0.95, "convnet": 0.985, "vit": 0.965}[name]


@pytest.mark.parametrize("name", NETWORKS)
def test_sizes_are_the_model_cards(name):
    model = NETWORKS[name]()
    assert sum(p.numel() for p in model.parameters()) == RESULTS[name]["parameters"]
    assert (WEIGHTS / f"{name}.safetensors").stat().st_size == RESULTS[name]["file_bytes"] <= 1_000_000


def test_model_card_shows_the_results_file():
    root = Path(__file__).parents[2]
    spec = importlib.util.spec_from_file_location("train_small_nets", root / "experiments" / "train_small_nets.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.table(RESULTS) in (root / "book" / "models.md").read_text()


@pytest.mark.parametrize("name", NETWORKS)
def test_eval_mode_own_weights_and_global_state_kept(name):
    before = torch.get_rng_state()
    a, b = NETWORKS[name](), NETWORKS[name]()
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(m.training for m in a.modules())
    with torch.no_grad():
        for p in a.parameters():
            p.zero_()
    committed = load_file(WEIGHTS / f"{name}.safetensors")
    assert all(torch.equal(v, committed[k].to(v)) for k, v in b.state_dict().items())


def test_seed_decides_the_start():
    weights = [mlp(pretrained=False, seed=s)[1].weight for s in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_convnet_holds_one_of_everything():
    model = convnet(pretrained=False)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    groups = {c.groups for c in convolutions}
    assert {1, 4, 64} <= groups  # ordinary, grouped, depthwise
    assert any(c.stride == (2, 2) for c in convolutions) and any(c.kernel_size == (1, 1) for c in convolutions)
    assert len([m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]) == len(convolutions)
    assert model(torch.rand(3, 1, 28, 28)).shape == (3, 10)


def test_shortcut_is_added():
    """With the last BatchNorm of a block at zero, the block is relu(shortcut)."""
    block = convnet(pretrained=False).block3
    nn.init.zeros_(block.conv2.bn.weight)
    x = torch.randn(2, 64, 7, 7)
    assert torch.equal(block(x), x.relu())


def test_a_token_of_the_transformer_is_a_patch_with_a_few_pixels_around_it():
    """Two kernels of 3 with stride 2: token (r, c) sees rows 4r − 3 to 4r + 3, its own four and three before them."""
    model = vit(pretrained=False)
    with torch.no_grad():
        before = model.embed(torch.zeros(1, 1, 28, 28))
        for row in range(28):
            image = torch.zeros(1, 1, 28, 28)
            image[0, 0, row, 13] = 1
            moved = (model.embed(image) != before).any(-1)[0]
            assert not moved[0]
            rows = {int(i) // 7 for i in moved[1:].nonzero()[:, 0]}
            assert rows == {r for r in range(7) if 4 * r - 3 <= row <= 4 * r + 3}


def test_the_transformer_takes_any_attention_and_its_tokens_know_their_place():
    model, x = vit(), mnist5k("held_out", count=20)[0]

    def attend(q, k, v):
        return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v

    with torch.no_grad():
        tokens = model.embed(x)
        for block in model.blocks:
            tokens = block(tokens, attend)
        torch.testing.assert_close(model.classify(tokens), model(x), rtol=1e-4, atol=1e-4)  # float32, another kernel
        order = torch.cat((torch.tensor([0]), 1 + torch.randperm(49)))
        shuffled = model.embed(x)[:, order]
        for block in model.blocks:
            shuffled = block(shuffled)
        torch.testing.assert_close(model.classify(shuffled), model(x), rtol=1e-4, atol=1e-4)  # positions are in them
