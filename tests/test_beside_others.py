"""The benchmark beside other libraries: what it measures is what it says, where the answer is known."""

import copy
import mmap
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import benchmarks.beside_others.__main__ as driver
from benchmarks.beside_others import codes, one, subject
from benchmarks.beside_others.runs import RUNS
from mlcomp.formats.stored import store
from mlcomp.quant import gptq, rtn

ROOT = Path(__file__).parents[1]


def test_every_run_is_of_a_library_that_is_described():
    named = yaml.safe_load((ROOT / "book" / "libraries.yml").read_text(encoding="utf-8"))
    for name, run in RUNS.items():
        assert run.method == "dense" or "left" in named[run.library], name
        assert run.version() != ""
    assert set(codes.PAIRS) <= set(RUNS) and not any(RUNS[name].library == "mlcomp" for name in codes.PAIRS)
    assert sum(run.library == "mlcomp" for run in RUNS.values()) >= 6


def layer(weight):
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    made.weight.data.copy_(weight)
    return made


class Scaled(nn.Module):
    """A layer of another kind, that holds its weight in its own way."""

    def __init__(self, weight):
        super().__init__()
        self.half = weight / 2

    def forward(self, x):
        return 2 * (x @ self.half.T)


def test_a_layers_weight_is_what_it_multiplies_by():
    weight = torch.randn(8, 5)
    assert torch.equal(subject.weight_of(Scaled(weight), 5), weight)
    assert torch.equal(subject.weight_of(layer(weight), 5), weight)


def test_layers_left_zeros_and_plain_rounding_are_counted():
    torch.manual_seed(0)
    weights = {name: torch.randn(4, 64) for name in ("a", "b", "c")}
    zeroed = weights["c"].clone()
    zeroed[:2] = 0
    rounded = rtn(weights["b"], **subject.UNIFORM).dequantize()
    rounded[0, 0] += 0.5 * float(rtn(weights["b"], **subject.UNIFORM).step[0, 0])  # one weight elsewhere
    model = nn.ModuleDict({"a": layer(weights["a"]), "b": Scaled(rounded), "c": layer(zeroed)})
    found = one.layers(model, weights)
    assert (found["layers"], found["left"], found["zeros"]) == (
        2,
        "a",
        round((128 + (rounded == 0).sum().item()) / 512, 4),
    )
    grid = rtn(weights["c"], **subject.UNIFORM)
    near = (zeroed - grid.dequantize()).abs() < grid.step / 50
    assert found["as_rounded"] == round((255 + int(near.sum())) / 512, 4)
    assert one.layers(nn.ModuleDict({"a": layer(weights["a"])}), {"a": weights["a"]})["left"] == "all"


def fresh_memory(size: int) -> mmap.mmap:
    """Return memory whose pages are new to the process: an allocator may hand out what other tests gave back."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[:: mmap.PAGESIZE] = bytes(len(range(0, size, mmap.PAGESIZE)))
    return memory


def test_the_peak_is_that_of_the_block_with_its_children():
    size = 60_000_000
    fresh_memory(2 * size).close()  # a peak before the block, which does not count
    with one.Watch() as nothing:
        pass
    with one.Watch() as own:
        held = fresh_memory(size)
    assert size * 0.9 < own.peak - nothing.peak < size * 1.5
    held.close()
    code = f"x = bytearray({size}); import time; time.sleep(0.6)"
    with one.Watch() as child:
        subprocess.run([sys.executable, "-c", code], check=True)
    # The child's own interpreter comes on top.
    assert size * 0.9 < child.peak - nothing.peak < size * 1.5 + 30e6
    assert child.seconds > 0.6 and own.others >= 0


@pytest.mark.slow
def test_other_programs_are_noticed():
    code = "import time; end = time.time() + 1.2\nwhile time.time() < end: pass"
    busy = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    with one.Watch() as watch:
        time.sleep(0.8)
    busy.wait()
    # It is a child here, but its time counts as ours only once it has ended.
    assert watch.others > 0.2 / 8


def test_agreement_by_hand():
    result = rtn(torch.randn(4, 128, generator=torch.Generator().manual_seed(1)), **subject.UNIFORM)
    weight = result.dequantize()
    assert codes.agreement(weight, result) == (1.0, 0.0)
    moved = weight.clone()
    moved[0, :64] += result.step[0, 0]
    same, step = codes.agreement(moved, result)
    assert same == 1 - 64 / 512 and step == 0
    same, step = codes.agreement(weight * 1.001, result)
    assert same == 1.0 and step == pytest.approx(1e-3, rel=1e-3)  # of float32 ratios
    pruned = torch.tensor([[0.0, 1.0, 0.0, 2.0]])
    assert codes.agreement(torch.tensor([[0.0, 3.0, 5.0, 0.0]]), pruned) == (0.5, 0.0)


def llama():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    return transformers.LlamaForCausalLM(config).eval()


def by_inputs(weight, hessian):
    """Remove half of the weights, by size times the norm of their inputs: quick, and it depends on the inputs."""
    score = weight.abs() * hessian.diagonal().sqrt()
    return weight * (score > score.median(dim=1, keepdim=True).values)


def test_the_walk_sees_what_a_block_by_block_library_saw():
    """Theirs, made anew: each block's layers from a whole forward pass of the model whose earlier blocks are done."""
    model, batches = llama(), list(torch.randint(0, 97, (6, 1, 32), generator=torch.Generator().manual_seed(2)))
    done, theirs = copy.deepcopy(model), {}
    for number in range(2):
        inputs, block = {}, done.model.layers[number]
        names = [name for name, module in block.named_modules() if isinstance(module, nn.Linear)]

        def hook(name, inputs=inputs):
            return lambda module, args: inputs.setdefault(name, []).append(args[0].flatten(0, 1))

        handles = [block.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
        with torch.no_grad():
            for batch in batches:
                done(batch)
        for handle in handles:
            handle.remove()
        for name in names:
            x, weight = torch.cat(inputs[name]), block.get_submodule(name).weight
            new = by_inputs(weight.detach(), 2 * x.T @ x)
            weight.data.copy_(new)
            theirs[f"model.layers.{number}.{name}"] = new.clone()
    rows = list(codes.walk(model, theirs, batches, by_inputs))
    assert [row["block"] for row in rows] == [0, 1]
    for row in rows:
        # The sums run in another order: two weights of nearly the same score may change places.
        assert row["least_same"] > 0.999 and row["error_ours"] == pytest.approx(row["error_theirs"], rel=0.02)
    with torch.no_grad():
        assert torch.allclose(model(batches[0]).logits, done(batches[0]).logits, atol=1e-5)


@pytest.mark.slow
def test_another_method_does_not_agree():
    model, batches = llama(), list(torch.randint(0, 97, (6, 1, 32), generator=torch.Generator().manual_seed(2)))
    theirs = {
        name: rtn(weight, **subject.UNIFORM).dequantize() for name, weight in subject.linear_weights(model).items()
    }
    (first, _) = codes.walk(model, theirs, batches, codes.METHODS["gptq_static"])
    assert first["same"] < 0.95 and first["error_ours"] < first["error_theirs"]


FOUND = {
    "seconds": 1.5, "others": 0.0, "peak_mb": 900, "perplexity": 20.0, "layers": 210, "left": "lm_head",
    "zeros": 0.1, "as_rounded": 0.9, "file_mb": 170.0, "exported_mb": "",
}  # fmt: skip
BLOCK = {
    "block": 0,
    "same": 0.99,
    "least_same": 0.9,
    "step_difference": "1e-4",
    "error_theirs": 0.1,
    "error_ours": 0.1,
}


@pytest.fixture
def stub(monkeypatch, tmp_path):
    """The driver with runs that cost nothing; the list has what was run."""
    called, busy = [], {}

    def child(module, name, model, files, threads):
        called.append((module, name))
        return [BLOCK] if module == "codes" else FOUND | {"others": busy.get(name, 0.0)}

    monkeypatch.setattr(driver, "child", child)
    monkeypatch.setattr(driver.subject, "prepare", lambda blocks: tmp_path / "model")
    monkeypatch.setattr(driver, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(driver, "RESULTS", tmp_path / "runs.csv")
    monkeypatch.setattr(driver, "CODES", tmp_path / "codes.csv")
    monkeypatch.setattr(driver.signal, "signal", lambda *_: None)
    monkeypatch.setattr(driver.torch, "set_num_threads", lambda n: None)
    monkeypatch.setattr(driver.RUNS["llmcompressor_gptq"].__class__, "version", lambda run: "1.0")
    return called, busy


@pytest.mark.slow
def test_a_second_call_runs_what_is_not_there_and_what_was_disturbed(stub, capsys):
    called, busy = stub
    busy["hqq"] = 1.5
    driver.main([])
    names = [name for name, run in RUNS.items() if not run.optional]
    assert [name for module, name in called if module == "one"] == names
    assert {name for module, name in called if module == "codes"} == set(codes.PAIRS)
    called.clear()
    busy.clear()
    driver.main([])
    assert called == [("one", "hqq")]
    called.clear()
    driver.main(["dense", "autoround_200"])
    assert [name for _, name in called] == ["dense", "autoround_200"]
    rows = driver.read_table(driver.RESULTS)
    assert [row["run"] for row in rows] == [*names, "hqq", "dense", "autoround_200"]
    assert rows[0]["commit"] and rows[0]["seed"] == "42" and rows[0]["version"] == "1.0"
    assert "perplexity" not in capsys.readouterr().err


def test_one_that_fails_does_not_stop_the_others(stub, monkeypatch, capsys):
    child = driver.child

    def failing(module, name, *rest):
        if name == "hqq":
            raise RuntimeError("hqq ended with status 1:\nno memory")
        return child(module, name, *rest)

    monkeypatch.setattr(driver, "child", failing)
    with pytest.raises(SystemExit, match="failed: hqq"):
        driver.main(["dense", "hqq", "mlcomp_rtn"])
    assert [row["run"] for row in driver.read_table(driver.RESULTS)] == ["dense", "mlcomp_rtn"]
    assert "no memory" in capsys.readouterr().out


def test_a_trial_records_nothing(stub):
    driver.main(["dense", "--blocks", "1"])
    assert not driver.RESULTS.exists() and not driver.CODES.exists()


def test_what_is_not_installed_is_left_out(stub, monkeypatch, capsys):
    monkeypatch.setattr(RUNS["hqq"].__class__, "version", lambda run: None if run.library == "hqq" else "1.0")
    driver.main(["hqq"])
    assert stub[0] == [] and "left out: hqq, hqq is not installed" in capsys.readouterr().out


def test_unknown_runs_are_an_error(capsys):
    with pytest.raises(SystemExit, match="2"):
        driver.main(["nothing"])
    assert "unknown run nothing" in capsys.readouterr().err


@pytest.mark.slow
def test_a_failed_run_says_what_it_wrote(tmp_path):
    with pytest.raises(RuntimeError, match=r"dense ended with status 1:\n[\s\S]*nowhere"):
        driver.child("one", "dense", tmp_path / "nowhere", tmp_path / "files", 1)


@pytest.mark.slow
def test_one_run_from_folder_to_json(tmp_path):
    """The dense model and our rounding, on a tiny model: sizes and perplexity are those of the model itself."""
    transformers = pytest.importorskip("transformers")
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models

    folder, model = tmp_path / "model", llama()
    model.save_pretrained(folder)
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    made.save_pretrained(folder)
    tokens = torch.randint(0, 97, (4, 32), generator=torch.Generator().manual_seed(3))
    save_file({"calibration": tokens, "held_out": tokens.clone()}, folder / subject.TOKENS)
    dense = driver.child("one", "dense", folder, tmp_path / "dense", 1)
    assert dense["left"] == "all" and dense["file_mb"] == round(
        (folder / "model.safetensors").stat().st_size / 1e6, 1
    )
    ours = driver.child("one", "mlcomp_rtn", folder, tmp_path / "ours", 1)
    assert ours["as_rounded"] == 1.0 and ours["layers"] == 15 and ours["file_mb"] < dense["file_mb"]
    assert 0 < ours["exported_mb"] < dense["file_mb"] and dense["exported_mb"] == ""
    assert ours["perplexity"] == pytest.approx(dense["perplexity"], rel=0.05)


def test_our_methods_are_those_of_the_settings():
    """Ours, called directly with the words of the table: the same codes."""
    torch.manual_seed(4)
    weight, x = torch.randn(16, 128), torch.randn(128, 300)
    hessian = 2 * x @ x.T
    options = {"bits": 4, "group_size": 64, "symmetric": True, "damp": 0.01, "static_groups": True}
    for name, order in (("gptq_static", "natural"), ("gptq_static_activation", "activation")):
        result = codes.METHODS[name](weight, hessian)
        assert torch.equal(result.codes, gptq(weight, hessian, order=order, **options).codes)
    assert result.bits_per_weight == 4.5 and store(result).nbytes == result.nbytes
    assert float((codes.METHODS["sparsegpt_50"](weight, hessian) == 0).float().mean()) == 0.5
    kept = codes.METHODS["sparsegpt_2_4"](weight, hessian).reshape(-1, 4)
    assert ((kept == 0).sum(1) == 2).all()


def test_the_committed_tables_have_the_columns_that_the_next_run_appends():
    about = ["run", "library", "version", "method", "setting"]
    origin = list(driver.origin(seed=driver.SEED))
    for path, columns in (
        (driver.RESULTS, [*about, *FOUND, *origin]),
        (driver.CODES, ["run", "version", *BLOCK, *origin]),
    ):
        if not path.exists():
            pytest.skip(f"{path.name} was not measured yet")
        header = path.read_text(encoding="utf-8").partition("\n")[0].split(",")
        assert header == columns, path.name
