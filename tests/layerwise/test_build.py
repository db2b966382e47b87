"""Models that are built by name: transformers from its configuration, torchvision and timm by their builders."""

import functools
import json
import sys
import types

import pytest
import torch
from torch import nn

from mlcomp.layerwise import PackedLinear, compress, load, save
from mlcomp.layerwise.build import build_model, check_source
from mlcomp.quant import rtn

FOUR = functools.partial(rtn, bits=4)


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    return all(k == n and torch.equal(v, w) and v.dtype == w.dtype for (k, v), (n, w) in pairs)


def tiny(name):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    common = {"vocab_size": 32, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    if name == "llama":
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = transformers.LlamaConfig(**common, **sizes, tie_word_embeddings=True)
        return transformers.LlamaForCausalLM(config).eval()
    if name == "gpt2":
        config = transformers.GPT2Config(**common, n_embd=16, n_layer=1, n_head=2, n_positions=16)
        return transformers.GPT2LMHeadModel(config).eval()
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(**common, **sizes, max_position_embeddings=16)
    return transformers.BertModel(config).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_models_of_transformers_need_no_skeleton(name, dtype, tmp_path):
    model = tiny(name).to(dtype)
    ids = torch.arange(3, 11)[None]
    result, report = compress(model, [ids], FOUR, sequential=False, progress=False)
    save(result, report.results, tmp_path / "m")
    dense, packed = load(tmp_path / "m"), load(tmp_path / "m", packed=True)
    assert type(dense) is type(model) and same(dense, result) and not dense.training
    assert any(isinstance(module, PackedLinear) for module in packed.modules())
    with torch.no_grad():
        want = result(ids)[0]
        assert torch.equal(dense(ids)[0], want)
        # Conv1D adds its bias in another order than F.linear does.
        torch.testing.assert_close(packed(ids)[0], want)
    if name == "llama":
        assert dense.lm_head.weight is dense.model.embed_tokens.weight
        texts = [m.generate(ids, max_new_tokens=5, do_sample=False) for m in (result, dense, packed)]
        assert torch.equal(texts[0], texts[1]) and torch.equal(texts[0], texts[2])


def test_settings_of_generation_and_the_tokenizer_come_along(tmp_path):
    class Tokenizer:
        def save_pretrained(self, folder):
            (folder / "tokenizer.json").write_text("{}")

    model = tiny("llama")
    model.generation_config.max_new_tokens = 7
    save(model, {}, tmp_path / "m", tokenizer=Tokenizer())
    assert load(tmp_path / "m").generation_config.max_new_tokens == 7
    assert (tmp_path / "m" / "tokenizer.json").exists()
    for name in ("config.json", "tokenizer.json"):
        whole = (tmp_path / "m" / name).read_bytes()
        (tmp_path / "m" / name).write_bytes(whole + b" ")
        with pytest.raises(ValueError, match=f"{name} was changed"):
            load(tmp_path / "m")
        (tmp_path / "m" / name).unlink()
        with pytest.raises(ValueError, match=f"{name} is missing"):
            load(tmp_path / "m")
        (tmp_path / "m" / name).write_bytes(whole)
    load(tmp_path / "m")


def test_a_class_of_the_users_own_needs_a_skeleton(tmp_path):
    transformers = pytest.importorskip("transformers")

    class Mine(transformers.LlamaForCausalLM):
        pass

    model = Mine(tiny("llama").config)
    save(model, {}, tmp_path / "m")
    assert "source" not in json.loads((tmp_path / "m" / "mlcomp.json").read_text())["model"]
    with pytest.raises(ValueError, match="no library builds by name"):
        load(tmp_path / "m")
    assert same(load(tmp_path / "m", Mine(model.config)), model)


@pytest.fixture
def builders(monkeypatch):
    """Stand-ins for torchvision and timm: what they were asked for, and a small network."""
    asked = []

    def get_model(name, weights=None, **options):
        asked.append((name, weights, options))
        if name == "nothing":
            raise ValueError(f"Unknown model {name}")
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, options.get("num_classes", 10)))

    def create_model(name, pretrained=True, **options):
        return get_model(name, pretrained or None, **options)

    torchvision = types.ModuleType("torchvision")
    torchvision.models = types.SimpleNamespace(get_model=get_model)
    timm = types.ModuleType("timm")
    timm.create_model = create_model
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)
    monkeypatch.setitem(sys.modules, "timm", timm)
    return asked


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_builders_are_asked_by_name_without_weights(library, builders, tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 5)).eval()
    x = torch.randn(2, 3, 3, 3)
    result, report = compress(model, [x], FOUR, progress=False)
    save(result, report.results, tmp_path / "m", source=f"{library}:small_net", options={"num_classes": 5})
    assert builders == []
    for packed in (False, True):
        back = load(tmp_path / "m", packed=packed)
        torch.testing.assert_close(back(x), result(x))
    assert builders == [("small_net", None, {"num_classes": 5})] * 2
    save(result, report.results, tmp_path / "n", source=f"{library}:nothing")
    with pytest.raises(ValueError, match=f"{library} cannot build 'nothing'"):
        load(tmp_path / "n")


def test_real_builders_are_known(tmp_path):
    """Where they are installed and load."""
    for library, name in (("torchvision", "squeezenet1_1"), ("timm", "resnet18")):
        try:
            __import__(library)
        except Exception as problem:
            pytest.skip(f"{library} is not importable here: {problem}")
        model = build_model(f"{library}:{name}", {"num_classes": 3}, tmp_path, torch.float32)
        save(model, {}, tmp_path / library, source=f"{library}:{name}", options={"num_classes": 3})
        assert same(load(tmp_path / library), model)


def test_a_library_that_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="pip install timm"):
        build_model("timm:resnet18", {}, tmp_path, torch.float32)


def test_a_model_is_built_without_memory_for_its_weights(tmp_path):
    model = tiny("llama")
    save(model, {}, tmp_path / "m")
    register = nn.Module.register_parameter
    empty = build_model("transformers:LlamaForCausalLM", {}, tmp_path / "m", torch.float32)
    assert all(p.is_meta for p in empty.parameters()) and not any(b.is_meta for b in empty.buffers())
    assert empty.lm_head.weight is empty.model.embed_tokens.weight
    assert nn.Module.register_parameter is register and not nn.Linear(2, 2).weight.is_meta
    assert not any(p.is_meta for p in load(tmp_path / "m").parameters())


def test_the_default_dtype_is_given_back(builders, tmp_path):
    build_model("timm:x", {}, tmp_path, torch.bfloat16)
    with pytest.raises(ValueError):
        build_model("timm:nothing", {}, tmp_path, torch.bfloat16)
    assert torch.get_default_dtype() == torch.float32


def test_bad_sources(as_user):
    assert check_source("timm:vit_base.augreg-2", {"depth": 3, "sizes": [1, 2.5], "flag": True}) == (
        "timm",
        "vit_base.augreg-2",
    )
    for source in ("timm:hf-hub:x/y", "timm:", "os:system", "torchvision:a/b", "timm:local-dir:x", None):
        with pytest.raises(ValueError, match="source must be"):
            check_source(source, {})
    for options in ({"checkpoint_path": "x"}, {"pretrained": 1}, {"act_layer": "x"}, {"a": {"b": 1}}, {1: 2}):
        with pytest.raises(ValueError, match="option"):
            check_source("timm:x", options)
