"""What is written is read by transformers with compressed-tensors, which share no code with it."""

import copy
import json
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn

from mlcomp.deploy import export_compressed_tensors
from mlcomp.formats import Bitmask, TwoFour
from mlcomp.layerwise import compress, load, load_results, save
from mlcomp.models.quiet import quiet_transformers
from mlcomp.obs import sparsegpt
from mlcomp.quant import gptq, lloyd_max, rtn, table_quantize
from mlcomp.train import add_lora

transformers = pytest.importorskip("transformers", reason="needs the extra deploy")
pytest.importorskip("compressed_tensors", reason="needs the extra deploy")

TOKENS = torch.arange(160).reshape(4, 40) * 5 % 61
SIZES = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
LLAMA = transformers.LlamaConfig(**SIZES, **HEADS, tie_word_embeddings=True)
Q, K, V, O, GATE, UP, DOWN = (
    f"model.layers.0.{name}_proj"
    for name in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")
)

# Each builds a model of transformers, writes it and reads it back; test_pack_quantized holds the format itself.
pytestmark = pytest.mark.slow


def made(tmp_path, config=LLAMA, dtype=torch.float32, kind="AutoModelForCausalLM") -> nn.Module:
    """Return a model that was loaded: one made by ``.to(bfloat16)`` has other position encodings."""
    with quiet_transformers():
        getattr(transformers, kind).from_config(config).to(dtype).save_pretrained(tmp_path / "dense")
    return read(tmp_path / "dense", kind)


def read(folder, kind="AutoModelForCausalLM") -> nn.Module:
    with quiet_transformers():
        return getattr(transformers, kind).from_pretrained(folder).eval()


def compressed(model: nn.Module, method) -> tuple[nn.Module, dict]:
    """Return the compressed model and each layer's result; ``method`` may be a mapping from names."""
    if not isinstance(method, dict):
        linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and "head" not in n]
        method = dict.fromkeys(linear, method)
    results = {}

    def keeping(name, weight, hessian):
        results[name] = method[name](weight, hessian)
        return results[name]

    methods = {name: partial(keeping, name) for name in method}
    return compress(model, [{"input_ids": TOKENS}], methods, progress=False, tied="untie")[0], results


@torch.no_grad()
def difference(model: nn.Module, other: nn.Module) -> float:
    """Return the largest difference of what two models put out first, logits or hidden states."""
    (a, *_), (b, *_) = (m(input_ids=TOKENS, return_dict=False) for m in (model, other))
    assert a.dtype == b.dtype and a.std() > 1e-3
    return float((a.double() - b.double()).abs().max())


def plain_rtn(weight, hessian, **options):
    return rtn(weight, **options)


def joint(weight, hessian):
    """2:4 by SparseGPT, then 4 bits: zero is a point of a symmetric grid, so the zeros stay."""
    return rtn(sparsegpt(weight, hessian, pattern=(2, 4)), bits=4, group_size=16, symmetric=True)


def files(folder) -> list[str]:
    return sorted(os.listdir(folder))


SYMMETRIC = partial(gptq, bits=4, group_size=16, symmetric=True)
AFFINE = partial(gptq, bits=4, group_size=16)


@pytest.mark.parametrize("method", [SYMMETRIC, AFFINE, joint], ids=["symmetric", "affine", "2:4 and 4 bits"])
def test_plain_transformers_reads_the_same_model(tmp_path, method, capsys):
    model, results = compressed(made(tmp_path), method)
    done = export_compressed_tensors(model, results, tmp_path / "out")
    assert set(done.packed) == set(results) == {Q, K, V, O, GATE, UP, DOWN} and done.left == ("lm_head",)
    again = read(tmp_path / "out")
    assert capsys.readouterr() == ("", "")  # no bars, neither written nor read
    assert difference(model, again) == 0.0
    for name, result in results.items():
        assert torch.equal(again.get_submodule(name).weight, result.dequantize())


def test_layers_of_different_grids_are_config_groups_with_their_names(tmp_path):
    methods = {
        Q: partial(plain_rtn, bits=4, symmetric=True),
        K: partial(plain_rtn, bits=4, symmetric=True),
        V: partial(plain_rtn, bits=8, group_size=8, symmetric=True),
        GATE: partial(plain_rtn, bits=3, group_size=16, symmetric=True),
        DOWN: partial(plain_rtn, bits=2, group_size=8, symmetric=True),
    }
    model, results = compressed(made(tmp_path), methods)
    done = export_compressed_tensors(model, results, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    groups = [
        (g["targets"], g["weights"]["num_bits"], g["weights"]["group_size"]) for g in config["config_groups"].values()
    ]
    assert groups == [([Q, K], 4, None), ([V], 8, 8), ([GATE], 3, 16), ([DOWN], 2, 8)]
    assert config["ignore"] == list(done.left) == [O, UP, "lm_head"]
    assert difference(model, read(tmp_path / "out")) == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_of_16_bits_with_steps_of_16_bits_is_the_same(tmp_path, dtype):
    dense = made(tmp_path, transformers.Qwen2Config(**SIZES, **HEADS), dtype)
    model, results = compressed(dense, partial(SYMMETRIC, scale_dtype=dtype))
    export_compressed_tensors(model, results, tmp_path / "out")
    assert difference(model, read(tmp_path / "out")) == 0.0


def test_steps_that_the_dtype_cannot_hold_are_refused_or_rounded_when_asked(tmp_path):
    model, results = compressed(made(tmp_path, dtype=torch.bfloat16), SYMMETRIC)
    with pytest.raises(ValueError, match=r"no numbers of bfloat16.*pass scale_dtype=torch\.bfloat16"):
        export_compressed_tensors(model, results, tmp_path / "out")
    export_compressed_tensors(model, results, tmp_path / "out", dtype=torch.bfloat16)
    again = read(tmp_path / "out")
    again(TOKENS)  # decoded at the first call
    got, want = again.get_submodule(Q).weight, results[Q].dequantize()
    assert got.dtype == torch.bfloat16
    # The step and the product are rounded to 8 bits once each.
    assert float(((got - want).abs() / want.abs().clamp(min=1e-9)).max()) <= 2 * 2**-8


def test_dtype_rounds_everything_and_halves_the_rest(tmp_path):
    model, results = compressed(made(tmp_path), SYMMETRIC)
    own = export_compressed_tensors(model, results, tmp_path / "own")
    half = export_compressed_tensors(model, results, tmp_path / "half", dtype=torch.bfloat16)
    again = read(tmp_path / "half")
    assert {p.dtype for p in again.parameters() if p.is_floating_point()} == {torch.bfloat16}
    assert torch.equal(again.get_input_embeddings().weight, model.get_input_embeddings().weight.bfloat16())
    assert again.lm_head.weight is again.get_input_embeddings().weight
    steps = sum(result.step.numel() for result in results.values())
    assert own.packed_nbytes - half.packed_nbytes == 2 * steps
    dense = sum(p.numel() for n, p in model.named_parameters() if n.removesuffix(".weight") not in results)
    header = 3000  # of the file: names, shapes and places as text
    assert abs((own.nbytes - half.nbytes) - 2 * (steps + dense)) < header
    assert 0 < own.nbytes - own.packed_nbytes - 4 * dense < header


def test_bytes_are_those_that_the_results_claim(tmp_path):
    model, results = compressed(made(tmp_path), SYMMETRIC)
    done = export_compressed_tensors(model, results, tmp_path / "out")
    shapes = 2 * 8 * len(results)  # weight_shape, which nobody else stores
    assert done.packed_nbytes == sum(result.nbytes for result in results.values()) + shapes
    assert done.nbytes == os.path.getsize(tmp_path / "out" / "model.safetensors")


def test_an_encoder_and_affine_grids(tmp_path):
    config = transformers.BertConfig(**SIZES, num_attention_heads=4, attn_implementation="eager")
    model, results = compressed(made(tmp_path, config, kind="AutoModel"), AFFINE)
    done = export_compressed_tensors(model, results, tmp_path / "out")
    assert len(done.packed) == 7 and done.left == ()  # the pooler is a linear layer, too
    assert difference(model, read(tmp_path / "out", "AutoModel")) == 0.0


def test_a_mixture_of_experts_is_refused_since_transformers_would_not_read_it(tmp_path):
    config = transformers.MixtralConfig(**SIZES, **HEADS, num_local_experts=2, num_experts_per_tok=1)
    model, results = compressed(made(tmp_path, config), dict.fromkeys((Q, K, V, O), SYMMETRIC))
    refused(tmp_path, model, results, ValueError, r"experts\.\w+: beside packed layers transformers")
    export_compressed_tensors(model, {}, tmp_path / "out")
    assert difference(model, read(tmp_path / "out")) == 0.0


def test_what_compress_keeps_and_what_a_saved_model_holds_are_results(tmp_path):
    model, report = compress(made(tmp_path), [{"input_ids": TOKENS}], {Q: AFFINE, K: AFFINE}, progress=False)
    model.get_submodule(UP).weight.data[:, ::2] = 0  # saved by its zeros
    save(model, report.results, tmp_path / "saved")
    done = export_compressed_tensors(model, report.results, tmp_path / "out")
    again = load_results(tmp_path / "saved")
    assert set(done.packed) == {Q, K} < {Q, K, UP} == set(again)
    assert difference(model, read(tmp_path / "out")) == 0.0
    export_compressed_tensors(load(tmp_path / "saved"), again, tmp_path / "again")
    for name in files(tmp_path / "out"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    with pytest.raises(ValueError, match=r"q_proj' is a PackedLinear, .*load the model with packed=False"):
        export_compressed_tensors(load(tmp_path / "saved", packed=True), again, tmp_path / "packed")


def test_a_head_with_a_weight_of_its_own_is_no_longer_tied(tmp_path):
    dense = made(tmp_path)
    model, results = compressed(dense, {Q: SYMMETRIC, "lm_head": SYMMETRIC})
    before = copy.deepcopy(model.config.to_dict())
    export_compressed_tensors(model, results, tmp_path / "out")
    assert model.config.to_dict() == before and model.config.tie_word_embeddings
    assert difference(dense, model) > 0 == difference(model, read(tmp_path / "out"))


def test_pruned_layers_are_stored_dense_with_their_zeros(tmp_path):
    prune = partial(sparsegpt, pattern=(2, 4))
    model, _ = compressed(made(tmp_path), {Q: prune, K: prune, V: SYMMETRIC})
    masks = {Q: TwoFour.from_dense(model.get_submodule(Q).weight.detach())}
    masks[K] = Bitmask.from_dense(model.get_submodule(K).weight.detach())
    done = export_compressed_tensors(model, masks, tmp_path / "pruned")
    config = json.loads((tmp_path / "pruned" / "config.json").read_text())
    assert done.packed == () and Q in done.left and "quantization_config" not in config
    assert difference(model, read(tmp_path / "pruned")) == 0.0


def tokenizer():
    tokenizers = pytest.importorskip("tokenizers")
    words = {f"w{i}": i for i in range(60)} | {"?": 60}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="?")


READER = """
import sys
sys.modules["mlcomp"] = None  # an import of it raises ImportError
import torch
torch.set_num_threads(int(sys.argv[3]))  # another number sums in another order
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = AutoModelForCausalLM.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
tokens = tokenizer("w3 w1 w4 w1 w5", return_tensors="pt")["input_ids"]
torch.save((model(tokens).logits.detach(), model.generate(tokens, max_new_tokens=8, do_sample=False)), sys.argv[2])
"""


@pytest.mark.slow
def test_a_process_without_this_library_reads_it_and_generates(tmp_path):
    model, results = compressed(made(tmp_path), AFFINE)
    model.generation_config.pad_token_id = 7
    export_compressed_tensors(model, results, tmp_path / "out", tokenizer=tokenizer())
    wanted = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert wanted <= set(files(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["pad_token_id"] == 7
    command = [sys.executable, "-c", READER, str(tmp_path / "out"), str(tmp_path / "read.pt")]
    command.append(str(torch.get_num_threads()))
    subprocess.run(command, check=True, capture_output=True)
    logits, text = torch.load(tmp_path / "read.pt")
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    assert torch.equal(logits, model(tokens).logits)
    assert torch.equal(text, model.generate(tokens, max_new_tokens=8, do_sample=False)) and text.shape == (1, 13)


class Breaks:
    def save_pretrained(self, folder):
        raise OSError("the disk is full")


def test_nothing_half_written_is_left_and_the_model_is_as_it_was(tmp_path):
    model, results = compressed(made(tmp_path), SYMMETRIC)
    state, config = copy.deepcopy(model.state_dict()), model.config.to_dict()
    with pytest.raises(OSError, match="disk is full"):
        export_compressed_tensors(model, results, tmp_path / "out", tokenizer=Breaks())
    assert files(tmp_path) == ["dense"]
    export_compressed_tensors(model, results, tmp_path / "out", dtype=torch.float16)
    assert model.config.to_dict() == config and state.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match="out holds"):
        export_compressed_tensors(model, results, tmp_path / "out")


def refused(tmp_path, model, results, error, match, **options) -> None:
    with pytest.raises(error, match=match):
        export_compressed_tensors(model, results, tmp_path / "out", **options)
    assert files(tmp_path) == ["dense"]


def test_what_cannot_be_expressed_is_refused_by_the_layers_name(tmp_path):
    model, results = compressed(made(tmp_path), {Q: SYMMETRIC, K: AFFINE, V: partial(SYMMETRIC, order="activation")})
    table = table_quantize(model.get_submodule(O).weight.detach(), lloyd_max("gaussian", 16))
    good = {Q: results[Q]}
    for bad, match in (
        (good | {O: table}, rf"layer '{O}': TableQuantized is no uniform grid"),
        (good | {V: results[V]}, rf"layer '{V}': its groups are not consecutive"),
        (results | {V: results[Q]}, rf"layer '{V}': its weight is \(16, 32\), the result \(32, 32\)"),
        (good | {"model.layers.7": results[Q]}, r"layer 'model\.layers\.7': it is not in the model"),
        (good | {"model.norm": results[Q]}, r"layer 'model\.norm': it is LlamaRMSNorm; .* packs nn\.Linear only"),
        ({Q: results[Q], K: results[K]}, rf"affine grids of several kinds.*'{K}'"),
        ({O: results[Q]}, rf"layer '{O}': its weight is not what the result decodes to"),
    ):
        refused(tmp_path, model, bad, ValueError, match)


def test_other_models_are_refused(tmp_path):
    llama = made(tmp_path)
    config = transformers.GPT2Config(vocab_size=61, n_embd=32, n_layer=1, n_head=4, n_positions=40)
    model = made(tmp_path, config)
    result = rtn(model.transformer.h[0].attn.c_attn.weight.detach().T, bits=4)
    refused(tmp_path, model, {"transformer.h.0.attn.c_attn": result}, ValueError, r"it is Conv1D; .* nn\.Linear only")
    refused(tmp_path, nn.Linear(3, 3), {}, TypeError, "must be a transformers model, with its config, got Linear")
    refused(tmp_path, model, {}, TypeError, "dtype must be one of", dtype=torch.int8)
    refused(tmp_path, model, {}, TypeError, "tokenizer must be one of transformers, got str", tokenizer="gpt2")
    with pytest.raises(ValueError, match=r"q_proj' is a LoRALinear, .*merge_lora\(model\)"):
        export_compressed_tensors(add_lora(llama, [Q], rank=1, alpha=1), {}, tmp_path / "out")
    model.config.quantization_config = {"quant_method": "gptq"}
    refused(tmp_path, model, {}, ValueError, "is quantized already")


@pytest.mark.slow
def test_smollm2(tmp_path):
    """The real model, two blocks by RTN and the value projection by GPTQ: the same logits and the same text."""
    from mlcomp.models import smollm2

    dense, tokenizer = smollm2()
    tokens = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    four_bits = {"bits": 4, "group_size": 64, "symmetric": True}
    chosen = [f"model.layers.{i}.{n}_proj" for i in (0, 29) for n in ("self_attn.q", "self_attn.v", "mlp.down")]
    methods = dict.fromkeys(chosen, partial(rtn, **four_bits)) | {chosen[1]: partial(gptq, **four_bits)}
    model, report = compress(dense, [tokens], methods, progress=False)
    del dense
    done = export_compressed_tensors(model, report.results, tmp_path / "out", tokenizer=tokenizer)
    assert done.packed == tuple(chosen)
    again = read(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, again(tokens).logits)
    text = [m.generate(tokens, max_new_tokens=6, do_sample=False) for m in (model, again)]
    assert torch.equal(*text) and "Paris" in tokenizer.decode(text[0][0])
