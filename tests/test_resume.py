"""Files that are there whole or not at all, and folders of finished pieces."""

import json
import logging
import os
import subprocess
import sys
import time

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from mlcomp.layerwise import compress
from mlcomp.quant import rtn
from mlcomp.resume import ResumeFolder, load_piece, new_folder, replacing, save_piece

SETTINGS = {"method": "1", "model": "2"}


def pieces(folder, *names):
    store = ResumeFolder(folder, SETTINGS)
    for i, name in enumerate(names):
        store.save(name, {"w": torch.full((3, 4), float(i))}, {"n": i, "name": name})
    return store


def test_pieces_come_back_in_another_store_of_the_same_settings(tmp_path):
    x = torch.randn(3, 4).T
    pieces(tmp_path, "a").save("b", {"x": x, "half": x.half()}, {"shape": [1, 2], "text": "ä"})
    store = ResumeFolder(tmp_path, dict(reversed(SETTINGS.items())))
    tensors, facts = store.load("b")
    assert torch.equal(tensors["x"], x) and tensors["half"].dtype == torch.float16
    assert facts == {"shape": [1, 2], "text": "ä"}
    assert "a" in store and "b" in store and "c" not in store
    assert json.loads((tmp_path / "manifest.json").read_text()) == SETTINGS


def damage(path, other, kind):
    data = bytearray(path.read_bytes())
    if kind == "flipped weight":
        data[-3] ^= 4
    if kind == "flipped fact":
        data[data.index(b'\\"n\\": 0') + 6] ^= 1  # 0 becomes 1, and all can be read
    changed = {"empty": b"", "half": data[: len(data) // 2], "other": other.read_bytes(), "text": b"no piece"}
    path.write_bytes(changed.get(kind, data))


@pytest.mark.parametrize("kind", ["flipped weight", "flipped fact", "empty", "half", "other", "text"])
def test_a_damaged_or_exchanged_piece_counts_as_not_made(tmp_path, kind, caplog):
    store = pieces(tmp_path, "a", "b")
    damage(tmp_path / "a.safetensors", tmp_path / "b.safetensors", kind)
    with pytest.raises(ValueError, match=r"a\.safetensors is damaged.*make it again"):
        store.load("a")
    with caplog.at_level(logging.WARNING):
        assert "a" not in store and "a" not in store and "b" in store
    assert [record.getMessage().split()[1:3] for record in caplog.records] == [["is", "damaged,"]]
    pieces(tmp_path, "a")
    assert store.load("a")[1]["n"] == 0


def test_a_piece_of_other_settings_is_none_of_this_run(tmp_path):
    pieces(tmp_path / "one", "a")
    ResumeFolder(tmp_path / "two", SETTINGS | {"method": "3"}).save("a", {"w": torch.ones(1)}, {})
    os.replace(tmp_path / "two" / "a.safetensors", tmp_path / "one" / "a.safetensors")
    assert "a" not in ResumeFolder(tmp_path / "one", SETTINGS)


def test_other_settings_are_named(tmp_path):
    pieces(tmp_path, "a")
    with pytest.raises(ValueError, match=r"begun with another method: .*helpers.*new folder"):
        ResumeFolder(tmp_path, SETTINGS | {"method": "3"})
    with pytest.raises(ValueError, match="another data, model:"):
        ResumeFolder(tmp_path, {"method": "1", "data": "4"})


@pytest.mark.parametrize("text", ["", '{"method": "1"', "[]", "\ud800"])
def test_a_damaged_manifest_is_named_with_the_way_out(tmp_path, text):
    pieces(tmp_path, "a")
    (tmp_path / "manifest.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(ValueError, match=r"manifest\.json is damaged: give a new folder, or delete"):
        ResumeFolder(tmp_path, SETTINGS)


def test_a_folder_of_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(ValueError, match=r"thesis\.txt.*no manifest\.json"):
        ResumeFolder(tmp_path, SETTINGS)


NAMES = (
    "Block.A block.a block.A ß SS 层.注意力 层.注意 ſ s a/b a_b a:b con aux.0 NUL . .. a. a é e\u0301 \ud800".split()
)
NAMES += ["x" * 300, "x" * 301, "X" * 300, "", " a", "a\n"]


def test_names_that_differ_have_files_that_differ_on_every_disk(tmp_path):
    store = pieces(tmp_path, *NAMES)
    files = [store._file(name).name for name in NAMES]
    assert len(set(files)) == len(NAMES) and all(f == f.casefold() and f.isascii() and len(f) < 100 for f in files)
    assert not any(f.partition(".")[0] in ("con", "aux", "nul") or f[0] in ". " for f in files)
    for i, name in enumerate(NAMES):
        assert store.load(name)[1] == {"n": i, "name": name}
    assert store._file("model.layers.0.self_attn.q_proj").name == "model.layers.0.self_attn.q_proj.safetensors"


def test_drafts_of_the_dead_go_and_those_of_the_living_stay(tmp_path):
    pieces(tmp_path, "a")
    old, new = tmp_path / "a.safetensors.00.partial", tmp_path / "b.safetensors.11.partial"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    assert "b" not in pieces(tmp_path) and new.exists() and not old.exists()


def test_replacing_leaves_the_old_file_at_an_error_and_follows_no_link(tmp_path):
    path, victim = tmp_path / "table.csv", tmp_path / "victim"
    victim.write_text("precious")
    path.symlink_to(victim)
    with replacing(path) as draft:
        draft.write_text("new")
    assert victim.read_text() == "precious" and path.read_text() == "new" and not path.is_symlink()
    with pytest.raises(RuntimeError), replacing(path) as draft:
        draft.write_text("half")
        raise RuntimeError
    assert path.read_text() == "new" and sorted(p.name for p in tmp_path.iterdir()) == ["table.csv", "victim"]
    assert path.stat().st_mode & 0o777 == victim.stat().st_mode & 0o777  # as any file that the user makes


def test_a_piece_of_its_own(tmp_path):
    save_piece(tmp_path / "x", {"w": torch.ones(2)}, [1], of="this")
    assert load_piece(tmp_path / "x", of="this")[1] == [1]
    with pytest.raises(ValueError, match="damaged, or another one's"):
        load_piece(tmp_path / "x", of="that")
    with pytest.raises(FileNotFoundError):
        load_piece(tmp_path / "y")


RUN = """
import sys, torch
from mlcomp.resume import ResumeFolder
for k in range(30):
    store = ResumeFolder(sys.argv[1], {"a": "1"})
    for name in "abcd":
        if name not in store:
            store.save(name, {"w": torch.full((50_000,), float(ord(name)))}, {})
        assert (store.load(name)[0]["w"] == ord(name)).all()
"""


@pytest.mark.slow
def test_two_processes_in_one_folder(tmp_path):
    runs = [subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path / "r")], stderr=subprocess.PIPE) for _ in "12"]
    assert [run.communicate(timeout=120)[1] for run in runs] == [b"", b""]
    assert sorted(p.name[:4] for p in (tmp_path / "r").iterdir()) == ["a.sa", "b.sa", "c.sa", "d.sa", "mani"]


BITS = 4


def finest(weight):
    return rtn(weight, bits=BITS)


def helped(weight, hessian):
    return finest(weight)


def model(act=nn.ReLU):
    torch.manual_seed(0)
    return nn.ModuleDict({"Mix": nn.Linear(6, 6), "mix": nn.Linear(6, 6), "层" * 90: nn.Linear(6, 6), "act": act()})


class Chain(nn.Module):
    def __init__(self, act=nn.ReLU):
        super().__init__()
        self.parts = model(act)

    def forward(self, x):
        for name, part in self.parts.items():
            x = self.parts["act"](part(x)) if name != "act" else x
        return x


class Stream(IterableDataset):
    def __iter__(self):
        yield from torch.randn(32, 6, generator=torch.Generator().manual_seed(1))


def run(folder, act=nn.ReLU, **options):
    batches = DataLoader(Stream(), batch_size=8)  # it has no length
    options = {"held_out": batches, "progress": False, "resume": folder} | options
    return compress(Chain(act), batches, helped, **options)


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_compress_goes_on_only_with_what_it_began_with(tmp_path, monkeypatch):
    whole, report = run(None)
    assert equal(run(tmp_path)[0], whole) and len(list(tmp_path.glob("*.safetensors"))) == 3
    assert all(row.held_out_error > 0 for row in report.rows)
    with pytest.raises(ValueError, match="another model:"):
        run(tmp_path, nn.Tanh)
    monkeypatch.setitem(globals(), "BITS", 2)
    with pytest.raises(ValueError, match="another method:"):
        run(tmp_path)
    monkeypatch.undo()
    monkeypatch.setitem(globals(), "finest", lambda weight: rtn(weight, bits=3))
    with pytest.raises(ValueError, match="another method:"):
        run(tmp_path)
    monkeypatch.undo()
    assert equal(run(tmp_path)[0], whole)


@pytest.mark.parametrize("kind", ["flipped weight", "half", "other"])
def test_compress_makes_a_damaged_layer_again(tmp_path, kind):
    whole, report = run(tmp_path)
    files = sorted(tmp_path.glob("*.safetensors"))
    stamps = [path.stat().st_mtime_ns for path in files]
    damage(files[0], files[1], kind)
    again, second = run(tmp_path)
    assert equal(again, whole) and [r.error for r in second.rows] == [r.error for r in report.rows]
    assert [path.stat().st_mtime_ns == stamp for path, stamp in zip(files, stamps, strict=True)] == [
        False,
        True,
        True,
    ]


ONE_RUN = """
import sys
from pathlib import Path
from tests import test_resume as t
t.run(Path(sys.argv[1]), layers={"parts.Mix", "parts.mix", "parts." + "层" * 90})
"""


@pytest.mark.slow
def test_compress_goes_on_with_a_set_of_names_in_a_process_of_another_hash_seed(tmp_path):
    for seed in ("1", "2"):
        command = [sys.executable, "-c", ONE_RUN, str(tmp_path)]
        done = subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_a_new_folder_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "model"
    with new_folder(path) as draft:
        (draft / "inner").mkdir()
        (draft / "inner" / "a.txt").write_text("a")
        assert not path.exists()
    assert (path / "inner" / "a.txt").read_text() == "a" and os.listdir(path.parent) == ["model"]
    with pytest.raises(KeyError), new_folder(tmp_path / "other") as draft:
        (draft / "half").write_text("h")
        raise KeyError
    assert os.listdir(tmp_path) == ["deep"]


def test_a_new_folder_overwrites_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty") as draft:
        (draft / "a").touch()
    with (
        pytest.raises(ValueError, match=r"empty holds \['a'\]: give a new or an empty folder"),
        new_folder(tmp_path / "empty"),
    ):
        raise AssertionError("nothing is begun")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="file is no folder"), new_folder(tmp_path / "file"):
        raise AssertionError("nothing is begun")
    with pytest.raises(ValueError, match="late holds"), new_folder(tmp_path / "late") as draft:
        (tmp_path / "late").mkdir()
        (tmp_path / "late" / "mine").touch()  # by another process, meanwhile
    assert sorted(os.listdir(tmp_path)) == ["empty", "file", "late"] and os.listdir(tmp_path / "late") == ["mine"]


def test_folders_that_killed_processes_left_are_cleared(tmp_path):
    for name, age in (("old", 4000), ("new", 0)):
        folder = tmp_path / f"model.{name}.partial"
        folder.mkdir()
        (folder / "half").touch()
        os.utime(folder, (time.time() - age,) * 2)
    with new_folder(tmp_path / "model"):
        pass
    assert sorted(os.listdir(tmp_path)) == ["model", "model.new.partial"]
