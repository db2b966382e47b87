"""2:4 layers are read by the last versions that knew their format, in a process of their own, and no later one."""

import copy
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from mlcomp.deploy import export_compressed_tensors
from mlcomp.deploy.sparse_24_bitmask import bitmask_layer, in_words_of_transformers_4, two_four_of
from mlcomp.formats import CSR, Bitmask, TwoFour
from mlcomp.formats.stored import Dense, store
from mlcomp.layerwise import compress
from mlcomp.obs import sparsegpt

transformers = pytest.importorskip("transformers", reason="needs the extra deploy")
pytest.importorskip("compressed_tensors", reason="needs the extra deploy")
from safetensors.torch import load_file  # noqa: E402

from tests.deploy.test_compressed_tensors import (  # noqa: E402
    DOWN,
    GATE,
    HEADS,
    SIZES,
    SYMMETRIC,
    TOKENS,
    UP,
    K,
    O,
    Q,
    V,
    compressed,
    joint,
    made,
    plain_rtn,
    read,
    refused,
    tokenizer,
)

SPARSE = {"two_four": "sparse-24-bitmask"}
TWO_FOUR = partial(sparsegpt, pattern=(2, 4))
BYTES = partial(plain_rtn, bits=8, group_size=8)
OLDER = Path(sys.prefix) / "older"  # tests/older.txt
# A base that is not the default: transformers 4 looks for it under another name.
ROPE = {"rope_theta": 500.0, "rope_type": "default"}
LLAMA = transformers.LlamaConfig(**SIZES, **HEADS, rope_parameters=ROPE, tie_word_embeddings=True)


def made_sparse(dense, methods) -> tuple:
    """Return the compressed model and its results as ``report.results`` and a saved model hold them."""
    model, results = compressed(dense, methods)
    return model, {name: store(result) for name, result in results.items()}


def literal(weight: torch.Tensor) -> tuple[list, list]:
    """Return values and bytes of a weight, by the words of the format, one row and one block at a time."""
    values, masks = [], []
    for row in weight.tolist():
        kept, bits = [], [0] * -(-len(row) // 8)
        for start in range(0, len(row), 4):
            places = [i for i in range(start, start + 4) if row[i] != 0]
            places += [i for i in range(start, start + 4) if row[i] == 0][: 2 - len(places)]
            for i in sorted(places):
                kept.append(row[i])
                bits[i // 8] += 2 ** (i % 8)
        values.append(kept)
        masks.append(bits)
    return values, masks


def two_four(out: int, inp: int) -> torch.Tensor:
    """Return a random weight with two, one or no value in a block, at places that differ."""
    keys = torch.rand(out, inp // 4, 4)
    kept = keys.argsort(-1).argsort(-1) < torch.randint(0, 3, (out, inp // 4, 1))
    return (torch.randn(out, inp // 4, 4) * kept).reshape(out, inp)


@pytest.mark.parametrize(("out", "inp"), [(1, 4), (3, 12), (5, 16), (8, 44)])
def test_values_and_bits_are_those_of_a_literal_loop(out, inp):
    weight = two_four(out, inp)
    tensors = bitmask_layer(two_four_of(weight))
    values, masks = literal(weight)
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {
        "compressed": torch.float32,
        "bitmask": torch.uint8,
        "shape": torch.int64,
    }
    assert tensors["compressed"].tolist() == values and tensors["bitmask"].tolist() == masks
    assert tensors["shape"].tolist() == [[out], [inp]]


@pytest.mark.parametrize(
    "weight", [torch.ones(2, 4), torch.tensor([[1.0, 0, 1, 1]]), torch.eye(6)], ids=["4", "3", "6 inputs"]
)
def test_what_is_not_two_four_is_told(weight):
    assert two_four_of(weight) is None


def test_rotary_positions_are_named_as_before():
    rope = {"rope_type": "llama3", "factor": 8.0, "rope_theta": 5e5, "partial_rotary_factor": 0.5}
    plain = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    told = in_words_of_transformers_4({"hidden_size": 8, "rope_parameters": rope, "text_config": plain})
    assert told["rope_theta"] == 5e5 and told["partial_rotary_factor"] == 0.5 and told["hidden_size"] == 8
    assert told["rope_scaling"] == {"rope_type": "llama3", "factor": 8.0} and told["rope_parameters"] == rope
    assert told["text_config"]["rope_theta"] == 1e6 and told["text_config"]["rope_scaling"] is None
    assert in_words_of_transformers_4({"hidden_size": 8}) == {"hidden_size": 8}
    with pytest.raises(
        ValueError, match=r"no common words .* of full_attention, sliding_attention: use two_four='den"
    ):
        in_words_of_transformers_4({"rope_parameters": {"full_attention": rope, "sliding_attention": rope}})


READER = """
import json, os, sys
sys.modules["mlcomp"] = None  # an import of it raises ImportError
import compressed_tensors, torch, transformers
assert (transformers.__version__, compressed_tensors.__version__) == ("4.57.6", "0.14.0.1")
torch.set_num_threads(int(sys.argv[1]))  # another number sums in another order
results = {}
for folder in sys.argv[4:]:
    dtype = json.load(open(folder + "/config.json"))["dtype"]  # the reader's own choice is float16
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    tokens = torch.load(sys.argv[2])
    with torch.no_grad():
        logits = model(tokens).logits
    text = model.generate(tokens[:1, :5], max_new_tokens=8, do_sample=False)
    words = None
    if os.path.exists(folder + "/tokenizer.json"):
        words = transformers.AutoTokenizer.from_pretrained(folder)("w3 w1 w4 w1 w5")["input_ids"]
    results[folder] = logits, text, {n: p.detach() for n, p in model.named_parameters()}, words
torch.save(results, sys.argv[3])
"""


def read_by_older(tmp_path, *folders) -> list[tuple]:
    """Return logits, text, weights and tokens of each folder, as the last versions that know the format have them."""
    if not OLDER.exists():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"{OLDER} is missing: run make test")
    torch.save(TOKENS, tmp_path / "tokens.pt")
    places = [str(tmp_path / "tokens.pt"), str(tmp_path / "read.pt"), *map(str, folders)]
    done = subprocess.run(
        [sys.executable, "-c", READER, str(torch.get_num_threads()), *places],
        env=os.environ | {"PYTHONPATH": str(OLDER), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return list(torch.load(tmp_path / "read.pt").values())


def config_of(folder) -> dict:
    return json.loads((folder / "config.json").read_text())


def same_but_dense(model, folder, out) -> Path:
    """Write the model with its zeros, and the same words about everything else as in ``folder``."""
    export_compressed_tensors(model, {}, out)
    config = config_of(folder)
    del config["quantization_config"]
    (out / "config.json").write_text(json.dumps(config))
    return out


def kept_as(model, forms) -> dict:
    return {name: form(model.get_submodule(name).weight.detach()) for name, form in forms.items()}


@pytest.mark.slow
@pytest.mark.parametrize("grid", [None, SYMMETRIC, BYTES], ids=["alone", "4 bits", "8 bits, affine"])
def test_the_last_reader_of_the_format_reads_the_same_model_and_generates(tmp_path, grid):
    """2:4 layers in every form and in none, beside one that is pruned otherwise and, with a grid, packed ones."""
    forms = {Q: TwoFour.from_dense, K: Bitmask.from_dense, DOWN: CSR.from_dense, UP: Dense}
    methods = dict.fromkeys(forms, TWO_FOUR) | {V: partial(sparsegpt, sparsity=0.5)}
    packed = {} if grid is None else {O: grid, GATE: grid}
    model, report = compress(made(tmp_path, LLAMA), [{"input_ids": TOKENS}], methods | packed, progress=False)
    assert set(report.results) == set(packed)  # a weight is no result
    results = report.results | kept_as(model, {} if grid is None else forms)
    done = export_compressed_tensors(model, results, tmp_path / "out", tokenizer=tokenizer(), **SPARSE)
    assert set(done.sparse) == set(forms) and set(done.packed) == set(packed)
    assert set(done.left) == {V, O, GATE, "lm_head"} - set(packed)
    told = config_of(tmp_path / "out")["quantization_config"]["sparsity_config"]
    assert set(told["targets"]) == set(forms) and set(told["ignore"]) == {V, O, GATE, "lm_head"}

    dense = same_but_dense(model, tmp_path / "out", tmp_path / "same")
    ours, other = read_by_older(tmp_path, tmp_path / "out", dense)
    assert torch.equal(ours[0], other[0]) and torch.equal(ours[1], other[1]) and ours[1].shape == (1, 13)
    with torch.no_grad():
        assert torch.equal(ours[0], model(TOKENS).logits)
    assert torch.equal(ours[1], model.generate(TOKENS[:1, :5], max_new_tokens=8, do_sample=False))
    state = dict(model.named_parameters())
    assert {name for name in state if not torch.equal(state[name], ours[2][name])} == set()
    assert ours[3] == [3, 1, 4, 1, 5]


@pytest.mark.slow
def test_models_of_16_bits_and_those_that_are_rounded_to_them(tmp_path):
    folders, models = [], []
    config = transformers.Qwen2Config(**SIZES, **HEADS)
    for own, asked in ((torch.bfloat16, None), (torch.float32, torch.bfloat16), (torch.float32, torch.float16)):
        place = tmp_path / f"{len(folders)}"
        model, results = made_sparse(made(place, config, own), dict.fromkeys((Q, K, V, GATE), TWO_FOUR))
        export_compressed_tensors(model, results, place / "out", dtype=asked, **SPARSE)
        folders.append(place / "out")
        models.append(copy.deepcopy(model).to(asked or own))
    for model, (_, _, weights, _) in zip(models, read_by_older(tmp_path, *folders), strict=True):
        state = dict(model.named_parameters())
        assert {name for name in state if not torch.equal(state[name], weights[name])} == set()
        assert {weight.dtype for weight in weights.values()} == {model.dtype}


@pytest.mark.slow
def test_the_file_holds_what_the_words_of_the_format_say(tmp_path):
    sizes = SIZES | {"hidden_size": 12, "intermediate_size": 20}  # rows that do not end with a byte
    heads = {"num_attention_heads": 3, "num_key_value_heads": 3}
    config = transformers.LlamaConfig(**sizes, **heads, tie_word_embeddings=True)
    model, results = made_sparse(made(tmp_path, config), {Q: TWO_FOUR, DOWN: TWO_FOUR, "lm_head": TWO_FOUR})
    done = export_compressed_tensors(model, results, tmp_path / "out", **SPARSE)
    assert done.sparse == (Q, DOWN, "lm_head") and done.packed == () and done.packed_nbytes == 0
    assert not config_of(tmp_path / "out")["tie_word_embeddings"]
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    for name in done.sparse:
        weight = model.get_submodule(name).weight.detach()
        values, masks = literal(weight)
        assert f"{name}.weight" not in tensors and tensors[f"{name}.shape"].tolist() == [[n] for n in weight.shape]
        assert tensors[f"{name}.compressed"].tolist() == values and tensors[f"{name}.bitmask"].tolist() == masks


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True], ids=["alone", "beside packed layers"])
def test_a_later_reader_raises_instead_of_filling_layers_with_random_numbers(tmp_path, packed):
    methods = {Q: TWO_FOUR, K: SYMMETRIC} if packed else {Q: TWO_FOUR}
    model, results = made_sparse(made(tmp_path), methods)
    export_compressed_tensors(model, results, tmp_path / "out", **SPARSE)
    with pytest.raises(ValueError, match=r"sparse-24-bitmask is read by compressed-tensors until 0\.14"):
        read(tmp_path / "out")


@pytest.mark.slow
def test_without_the_option_nothing_changes(tmp_path):
    model, results = made_sparse(made(tmp_path, LLAMA), {Q: TWO_FOUR, K: SYMMETRIC})
    done = export_compressed_tensors(model, results, tmp_path / "out", two_four="dense")
    assert done.sparse == () and Q in done.left
    config = config_of(tmp_path / "out")
    assert "sparsity_config" not in config["quantization_config"] and "rope_theta" not in config
    assert len(config["quantization_config"]["config_groups"]) == 1
    read(tmp_path / "out")


@pytest.mark.slow
def test_what_cannot_be_written_sparse_is_refused_before_anything_is(tmp_path):
    dense = made(tmp_path)
    model, results = made_sparse(dense, {Q: TWO_FOUR, V: SYMMETRIC})
    anywhere = made_sparse(dense, {Q: partial(sparsegpt, sparsity=0.5), K: joint})
    none = r"needs a layer that is pruned 2:4 and not quantized.*pass pattern=\(2, 4\)"
    refused(tmp_path, dense, {}, ValueError, none, **SPARSE)
    refused(tmp_path, *anywhere, ValueError, none, **SPARSE)
    three = partial(plain_rtn, bits=3, symmetric=True)
    other, packed = made_sparse(dense, {Q: TWO_FOUR, K: three})
    refused(tmp_path, other, packed, ValueError, "0.14 packs 3 bits in another way", **SPARSE)
    other = r"q_proj': its weight is not what the result decodes to"
    refused(tmp_path, dense, {Q: kept_as(model, {Q: Dense})[Q]}, ValueError, other, **SPARSE)
    short = {Q: Dense(model.get_submodule(Q).weight.detach()[:4])}
    refused(tmp_path, model, short, ValueError, r"weight is \(32, 32\), the result \(4, 32\)", **SPARSE)
    asked = r"two_four must be one of dense, sparse-24-bitmask, got 'marlin-24'"
    refused(tmp_path, model, results, ValueError, asked, two_four="marlin-24")
    model.config.rope_parameters = {"full_attention": ROPE, "sliding_attention": ROPE}
    refused(tmp_path, model, kept_as(model, {Q: Dense}), ValueError, "no common words", **SPARSE)
