"""PEFT reads what is written here, and what PEFT writes is read here."""

import copy
import json
import os

import pytest
import torch
from torch import nn

from mlcomp.deploy import load_lora_adapter, save_lora_adapter
from mlcomp.models.quiet import quiet_transformers
from mlcomp.train import add_lora, lora_layers, lora_parameters

transformers = pytest.importorskip("transformers", reason="needs the extra deploy")
peft = pytest.importorskip("peft", reason="needs the extra deploy")

TOKENS = torch.arange(24).reshape(2, 12) * 5 % 61
SIZES = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
LLAMA = transformers.LlamaConfig(**SIZES, num_attention_heads=4, num_key_value_heads=2)
LAYERS = {
    "a kind in every block": lambda name, layer: name.endswith(("q_proj", "down_proj")),
    "one layer": ["model.layers.1.mlp.up_proj"],
    "all": lambda name, layer: True,
}


def llama(dtype=torch.float32) -> nn.Module:
    with quiet_transformers():
        return transformers.AutoModelForCausalLM.from_config(LLAMA).to(dtype).eval()


def corrected(base: nn.Module, layers="a kind in every block", **options) -> nn.Module:
    """Return a copy with corrections that are not zero."""
    model = add_lora(copy.deepcopy(base), LAYERS[layers], **{"rank": 3, "alpha": 7, **options})
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.lora_B, std=0.1)
    return model


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model(input_ids=TOKENS).logits


@pytest.mark.parametrize("layers", LAYERS)
def test_peft_puts_the_same_corrections_on_the_base_model(tmp_path, layers):
    base = llama()
    model = corrected(base, layers)
    save_lora_adapter(model, tmp_path / "out", base_model="somewhere/base")
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "out").eval()
    assert not torch.allclose(logits(model), logits(base), atol=1e-3)
    assert torch.equal(logits(theirs), logits(model))
    config = theirs.peft_config["default"]
    assert (config.base_model_name_or_path, config.task_type) == ("somewhere/base", "CAUSAL_LM")
    held = {name for name, _ in theirs.named_parameters() if "lora_" in name}
    assert len(held) == 2 * len(lora_layers(model))  # no other layer has one


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_peft_writes_is_read(tmp_path, dtype):
    base = llama(dtype)
    config = peft.LoraConfig(r=3, lora_alpha=5, lora_dropout=0.1, target_modules=["v_proj", "gate_proj"])
    theirs = peft.get_peft_model(copy.deepcopy(base), config).eval()
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    theirs.save_pretrained(tmp_path / "theirs")
    model = load_lora_adapter(copy.deepcopy(base), tmp_path / "theirs").eval()
    assert torch.equal(logits(model), logits(theirs))
    layer = lora_layers(model)["model.layers.0.mlp.gate_proj"]
    assert (layer.rank, layer.alpha, layer.dropout.p, layer.lora_A.dtype) == (3, 5.0, 0.1, torch.float32)
    assert [p for p in model.parameters() if p.requires_grad] == lora_parameters(model) and len(
        lora_layers(model)
    ) == 4


def test_there_and_back_to_the_bit(tmp_path):
    base = llama()
    model = corrected(base, alpha=2.5, dropout=0.25)
    assert save_lora_adapter(model, tmp_path / "out") == tmp_path / "out"
    again = load_lora_adapter(base, tmp_path / "out")
    assert again is base and torch.equal(logits(again), logits(model))
    for mine, other in zip(lora_parameters(model), lora_parameters(again), strict=True):
        assert torch.equal(mine, other)
    save_lora_adapter(again, tmp_path / "again")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_what_cannot_be_saved_is_refused(tmp_path):
    base = llama()
    with pytest.raises(ValueError, match="has no corrections"):
        save_lora_adapter(base, tmp_path / "out")
    model = corrected(base)
    next(iter(lora_layers(model).values())).dropout.p = 0.5
    with pytest.raises(ValueError, match="one rank, alpha and dropout"):
        save_lora_adapter(model, tmp_path / "out")
    assert os.listdir(tmp_path) == []
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds \['mine\.txt'\]"):
        save_lora_adapter(corrected(base), tmp_path)


def test_a_folder_that_is_no_plain_adapter_of_this_model_changes_nothing(tmp_path):
    base = llama()
    save_lora_adapter(corrected(base), tmp_path / "out")
    path, tensors = tmp_path / "out" / "adapter_config.json", tmp_path / "out" / "adapter_model.safetensors"
    good, whole = json.loads(path.read_text()), tensors.read_bytes()
    for change, match in (
        ({"use_dora": True}, r"no plain LoRA: \{'use_dora': True\}"),
        ({"use_rslora": True}, "no plain LoRA"),
        ({"bias": "all"}, r"\{'bias': 'all'\}"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"peft_type": "IA3"}, "is no LoRA adapter's"),
        ({"r": 2}, r"lora_A of layer '[\w.]+' is \(3, \d+\), and must be \(2, \d+\)"),
        ({"r": None}, "must say r and lora_alpha"),
    ):
        path.write_text(json.dumps(good | change))
        with pytest.raises(ValueError, match=match):
            load_lora_adapter(base, tmp_path / "out")
    path.write_text(json.dumps(good))
    tensors.write_bytes(whole[:-9])
    with pytest.raises(ValueError, match="is damaged"):
        load_lora_adapter(base, tmp_path / "out")
    with pytest.raises(ValueError, match="holds no adapter"):
        load_lora_adapter(base, tmp_path)
    tensors.write_bytes(whole)
    with pytest.raises(ValueError, match=r"no linear layer 'model\.layers\.0"):
        load_lora_adapter(nn.Sequential(nn.Linear(3, 3)), tmp_path / "out")
    assert not lora_layers(base) and all(p.requires_grad for p in base.parameters())
    load_lora_adapter(base, tmp_path / "out")
