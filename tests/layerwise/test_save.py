import functools
import itertools
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from mlcomp.layerwise import PackedLinear, compress, load, load_results, save
from mlcomp.layerwise.contents import _apart
from mlcomp.prune import magnitude
from mlcomp.quant import aqlm, blockwise, quip, rtn, spqr

FOUR = functools.partial(rtn, bits=4)


def mlp():
    return nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 4))


def convolutions():
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 6, 3, stride=2, groups=2),
        nn.Conv2d(6, 6, 3, padding="same", groups=6, bias=False),
    )


class Attending(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True, **options), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.attention(x, x, x)[0])


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights, self.first = nn.Parameter(torch.randn(3, 6, 6)), nn.Linear(6, 6)

    def forward(self, x):
        x = self.first(x)
        return torch.cat([F.linear(x[i::3], self.weights[i]) for i in range(3)])


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.body, self.head = nn.Embedding(16, 8), nn.Linear(8, 8), nn.Linear(8, 16, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("scale", torch.tensor(2.0))
        self.register_buffer("made", torch.arange(3.0), persistent=False)

    def forward(self, x):
        return self.head(self.body(self.embedding(x)) * self.scale)


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.last = nn.Linear(6, 6), nn.Linear(6, 2)
        self.again = self.one

    def forward(self, x):
        return self.last(self.again(torch.tanh(self.one(x))))


MODELS = {
    "mlp": (mlp, lambda: torch.randn(20, 12)),
    "convolutions": (convolutions, lambda: torch.randn(3, 4, 6, 6)),
    "attention": (Attending, lambda: torch.randn(3, 5, 8)),
    "attention_sizes": (lambda: Attending(kdim=8, vdim=8), lambda: torch.randn(3, 5, 8)),
    "experts": (Experts, lambda: torch.randn(30, 6)),
    "tied": (Tied, lambda: torch.randint(0, 16, (4, 5))),
    "shared": (Shared, lambda: torch.randn(9, 6)),
}
EVERY = pytest.mark.parametrize("name", MODELS)


def compressed(name, method=FOUR, **options):
    make, inputs = MODELS[name]
    model, x = make().eval(), inputs()
    return *compress(model, [x], method, progress=False, **options), make(), x


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    return all(k == n and torch.equal(v, w) and v.dtype == w.dtype for (k, v), (n, w) in pairs)


@pytest.mark.parametrize(
    "method",
    [
        functools.partial(aqlm, dim=4, books=1, code_bits=2, max_rounds=1),
        functools.partial(spqr, bits=3, group_size=4),
        functools.partial(quip, bits=3),
        functools.partial(blockwise, bits=4, block_size=8),
        functools.partial(magnitude, sparsity=0.7),
    ],
    ids=lambda method: method.func.__name__,
)
def test_every_kind_of_result_is_saved_and_multiplied(method, tmp_path):
    model, report, fresh, x = compressed("mlp", method)
    save(model, report.results, tmp_path / "m")
    assert same(load(tmp_path / "m", fresh), model)
    packed = load(tmp_path / "m", fresh.eval(), packed=True)
    assert isinstance(packed[0], PackedLinear)
    torch.testing.assert_close(packed(x), model(x), rtol=1e-5, atol=1e-5)


@EVERY
def test_the_file_has_the_size_that_the_report_counts(name, tmp_path):
    model, report, _, _ = compressed(name)
    save(model, report.results, tmp_path / "m")
    with safe_open(tmp_path / "m" / "model.safetensors", "pt") as file:
        sizes = {key: file.get_tensor(key).nbytes for key in file.keys()}
    for row in report.rows:
        if row.status == "compressed":
            assert sum(size for key, size in sizes.items() if key.startswith(f"{row.name}/")) == row.nbytes_after
    packed = sum(r.nbytes_after for r in report.rows if r.status == "compressed")
    homes = {"attention.in_proj_weight", "weights"}
    seen, rest = set(), 0
    for key, value in model.state_dict().items():
        layer = key.removesuffix(".weight")
        if layer not in report.results and key not in homes and "_proj_weight" not in key:
            rest += 0 if value.data_ptr() in seen else value.nbytes
            seen.add(value.data_ptr())
    if name != "shared":  # whose layer stands in the state under two names
        assert sum(sizes.values()) == packed + rest


def test_pruned_weights_are_written_without_their_zeros(tmp_path):
    model, report, fresh, _ = compressed("convolutions", functools.partial(magnitude, sparsity=0.8))
    assert not report.results
    save(model, report.results, tmp_path / "m")
    kept = load_results(tmp_path / "m")
    assert {part.kind for parts in kept.values() for part in parts} == {"bitmask"}
    assert {name: parts[0].nbytes for name, parts in kept.items()} == {r.name: r.nbytes_after for r in report.rows}
    assert same(load(tmp_path / "m", fresh), model)


def test_what_is_not_compressed_may_be_narrowed(tmp_path):
    model, report, fresh, _ = compressed("tied")
    save(model, report.results, tmp_path / "m", dtype=torch.float16)
    stored = load_file(tmp_path / "m" / "model.safetensors")
    assert stored["embedding.weight"].dtype == torch.float16 and "head.weight" not in stored
    back = load(tmp_path / "m", fresh)
    assert back.head.weight is back.embedding.weight and back.embedding.weight.dtype == torch.float32
    assert torch.equal(back.embedding.weight, model.embedding.weight.half().float())
    assert torch.equal(back.body.weight, model.body.weight)
    with torch.no_grad():
        model.embedding.weight[0, 0] = 1e6
    with pytest.raises(ValueError, match=r"beyond torch\.float16"):
        save(model, report.results, tmp_path / "n", dtype=torch.float16)
    assert not (tmp_path / "n").exists() and [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_weight_that_was_untied_comes_back_untied(tmp_path):
    model, report, fresh, x = compressed("tied", tied="untie")
    assert "head" in report.results
    save(model, report.results, tmp_path / "m")
    for packed in (False, True):
        back = load(tmp_path / "m", fresh.eval(), packed=packed)
        torch.testing.assert_close(back(x), model(x), rtol=1e-6, atol=1e-6)
        assert torch.equal(back.embedding.weight, fresh.embedding.weight) is False
        assert torch.equal(back.head.weight, model.head.weight)


def test_a_changed_model_is_not_saved_as_what_it_was(tmp_path):
    model, report, _, _ = compressed("mlp")
    with torch.no_grad():
        model[3].weight[0, 0] += 1
    with pytest.raises(ValueError, match="'3' is not what its result says"):
        save(model, report.results, tmp_path / "m")
    with pytest.raises(ValueError, match=r"layers that the model does not have: .*'x'"):
        save(model, {"x": report.results["0"]}, tmp_path / "m")
    with pytest.raises(ValueError, match="do not fit"):
        save(model, {"3": report.results["0"]}, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_folders_of_others_are_left_alone(tmp_path):
    model, report, fresh, _ = compressed("mlp")
    home = tmp_path / "m"
    home.mkdir()
    save(model, report.results, home)  # an empty one is taken
    with pytest.raises(ValueError, match="overwrite=True"):
        save(model, report.results, home)
    other = mlp()
    save(other, {}, home, overwrite=True)
    assert same(load(home, fresh), other)
    (home / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"notes\.txt"):
        save(model, report.results, home, overwrite=True)
    with pytest.raises(ValueError, match="is a file"):
        save(model, report.results, home / "notes.txt")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "mlcomp.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds \['mlcomp.json'\]"):
        save(model, report.results, tmp_path / "foreign", overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["foreign", "m"]


def test_an_error_while_writing_leaves_the_old_folder(tmp_path, monkeypatch):
    model, report, fresh, _ = compressed("mlp")
    save(model, report.results, tmp_path / "m")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys.modules["mlcomp.layerwise.save"], "save_piece", full)
    with pytest.raises(OSError, match="No space left"):
        save(mlp(), {}, tmp_path / "m", overwrite=True)
    assert same(load(tmp_path / "m", fresh), model) and [p.name for p in tmp_path.iterdir()] == ["m"]
    monkeypatch.undo()
    replace = os.replace

    def refused(old, new):
        if str(old).endswith(".partial") and str(new).endswith("m"):
            raise OSError(13, "Permission denied")
        replace(old, new)

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(OSError, match="Permission"):
        save(mlp(), {}, tmp_path / "m", overwrite=True)
    assert same(load(tmp_path / "m", fresh), model) and [p.name for p in tmp_path.iterdir()] == ["m"]


def test_models_that_cannot_be_saved_are_told(tmp_path, as_user):
    model, report, fresh, _ = compressed("mlp")
    save(model, report.results, tmp_path / "m")
    with pytest.raises(ValueError, match="packed already"):
        save(load(tmp_path / "m", fresh, packed=True), {}, tmp_path / "n")
    with torch.device("meta"):
        empty = mlp()
    with pytest.raises(ValueError, match="no data"):
        save(empty, {}, tmp_path / "n")

    class Odd(nn.Linear):
        def get_extra_state(self):
            return {"a": 1}

    with pytest.raises(ValueError, match="_extra_state"):
        save(nn.Sequential(Odd(2, 2)), {}, tmp_path / "n")
    for source in ("resnet18", "timm:hf-hub:a/b", "torchvision:../x", 3):
        with pytest.raises(ValueError, match="source must be"):
            save(model, report.results, tmp_path / "n", source=source)
    with pytest.raises(ValueError, match="leave source out"):
        save(model, report.results, tmp_path / "n", source="transformers:BertModel")
    for options in ({"pretrained": True}, {"name": "x"}, {"weights_backbone": None}):
        with pytest.raises(ValueError, match="option"):
            save(model, report.results, tmp_path / "n", source="timm:x", options=options)
    with pytest.raises(ValueError, match="there is none"):
        save(model, report.results, tmp_path / "n", options={"a": 1})
    with pytest.raises(TypeError, match="dtype must be"):
        save(model, report.results, tmp_path / "n", dtype=torch.int8)
    assert not (tmp_path / "n").exists()


def test_resume_folders_hold_packed_layers(tmp_path):
    make, inputs = MODELS["convolutions"]
    model, x = make().eval(), inputs()
    first, report = compress(model, [x], FOUR, progress=False, resume=tmp_path / "r")
    again, second = compress(model, [x], FOUR, progress=False, resume=tmp_path / "r")
    assert same(first, again) and report == second
    assert {k: [p.nbytes for p in v] for k, v in second.results.items()} == {
        k: [p.nbytes for p in v] for k, v in report.results.items()
    }
    for row in report.rows:
        (piece,) = [p for p in (tmp_path / "r").glob("*.safetensors") if p.name.startswith(f"{row.name}.")]
        assert sum(t.nbytes for t in load_file(piece).values()) == row.nbytes_after
    pruned, report = compress(model, [x], functools.partial(magnitude, sparsity=0.9), resume=tmp_path / "s")
    again, _ = compress(model, [x], functools.partial(magnitude, sparsity=0.9), resume=tmp_path / "s")
    assert same(pruned, again)
    stored = sum(t.nbytes for p in (tmp_path / "s").glob("*.safetensors") for t in load_file(p).values())
    assert stored == report.nbytes_after


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells what of a file is in memory")
def test_results_in_the_files_of_a_resume_folder_take_no_memory(tmp_path):
    model, x = nn.Sequential(nn.Linear(256, 512), nn.Linear(512, 256)).eval(), torch.randn(20, 256)
    for _ in ("made", "read again"):
        _, report = compress(model, [x], FOUR, progress=False, resume=tmp_path / "r")
        before = resident(tmp_path / "r")
        assert set(before) == {f"{name}.safetensors" for name in report.results} and sum(before.values()) == 0
        for parts in report.results.values():
            parts[0].tensors["codes"].sum()
        assert all(size >= 256 * 512 // 2 for size in resident(tmp_path / "r").values())
        del report, parts
        assert not resident(tmp_path / "r")


def resident(folder):
    """Return the bytes in memory of each file of a folder that is mapped."""
    found, name = {}, None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            name = Path(words[-1]).name if words[-1].startswith(str(folder)) else None
        elif words[0] == "Rss:" and name is not None:
            found[name] = found.get(name, 0) + 1024 * int(words[1])
    return found


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells which files are mapped")
def test_results_stay_in_the_files_of_a_resume_folder(tmp_path):
    make, inputs = MODELS["convolutions"]
    model, x = make().eval(), inputs()
    _, inside = compress(model, [x], FOUR, progress=False)
    for _ in ("made", "read again"):
        result, report = compress(model, [x], FOUR, progress=False, resume=tmp_path / "r")
        mapped = Path("/proc/self/maps").read_text()
        assert all(f"{tmp_path / 'r' / row.name}.safetensors" in mapped for row in report.rows)
        for name, parts in inside.results.items():
            for part, other in zip(parts, report.results[name], strict=True):
                assert (part.kind, part.facts, part.tensors.keys()) == (other.kind, other.facts, other.tensors.keys())
                assert all(torch.equal(t, other.tensors[key]) for key, t in part.tensors.items())
    shutil.rmtree(tmp_path / "r")
    save(result, report.results, tmp_path / "m")
    assert same(load(tmp_path / "m", make()), result)


def test_a_users_own_result_is_compressed_as_before(tmp_path):
    """One without a stored form is not kept, and the weight it stood for is saved as it is."""

    class Rounded:
        def __init__(self, weight):
            self.weight, self.nbytes = weight.round(), 7

        def dequantize(self):
            return self.weight

    make, inputs = MODELS["mlp"]
    model, x = make().eval(), inputs()
    result, report = compress(model, [x], lambda w: Rounded(w), progress=False)
    assert not report.results and report["0"].nbytes_after == 7
    save(result, report.results, tmp_path / "m")
    assert same(load(tmp_path / "m", make()), result)


def test_tensors_that_share_bytes_are_written_each_with_its_own():
    memory = torch.arange(12.0)
    tensors = {"a": memory[:4], "b": memory[4:8], "c": memory[3:6], "d": memory[6:], "e": torch.zeros(0), "f": memory}
    found = _apart(tensors)
    assert list(found) == list(tensors) and all(torch.equal(found[key], tensors[key]) for key in tensors)
    spans = sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in found.values() if t.numel())
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    # Beside what covers all only the others that lie apart from each other could have stayed as they are.
    assert sum(found[key] is tensors[key] for key in "abcdf") >= 1 and found["e"] is tensors["e"]
    apart = {"a": memory[:4], "b": memory[4:8], "d": memory[8:]}
    assert all(_apart(apart)[key] is apart[key] for key in apart)
