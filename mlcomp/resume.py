"""Results that survive a kill at any moment: files that are there whole or not at all, folders of finished pieces.

A piece is one safetensors file. It carries a hash of its contents, its name and the settings of its run, so a damaged
or an exchanged one is noticed and made again. What the settings depend on is hashed by :mod:`mlcomp.fingerprint`.
"""

import glob
import json
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mlcomp.fingerprint import hash_batches, hash_model, hash_values

__all__ = [
    "ResumeFolder",
    "hash_batches",
    "hash_model",
    "hash_values",
    "load_piece",
    "new_folder",
    "replacing",
    "save_piece",
]

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
DRAFT = ".partial"
# Names that are a file's name on every disk as they stand: no capitals, short, and no device of Windows.
_SAFE = re.compile(r"(?!(con|prn|aux|nul|com\d|lpt\d)(\.|$))[a-z0-9_][a-z0-9_.]{0,79}")


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a new file beside ``path`` to write to; afterwards it takes its place, whole.

    An error leaves the old one. The new file is created exclusively, under a name of its own: two at once do not
    meet, and no link is followed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear(path.parent, f"{glob.escape(path.name)}.*{DRAFT}")
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}{DRAFT}")
    draft.touch(exist_ok=False)
    mode = draft.stat().st_mode
    try:
        yield draft
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        draft.chmod(mode)  # safetensors leaves files that nobody else may read
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a new folder beside ``path`` to fill; afterwards it takes its place, whole.

    An error leaves nothing.

    Raises:
        ValueError: before anything is written: ``path`` is there, and no empty folder. Nothing is overwritten.
    """
    path = Path(path)
    check_new_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear(path.parent, f"{glob.escape(path.name)}.*{DRAFT}")
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}{DRAFT}")
    draft.mkdir()
    try:
        yield draft
        for file in filter(Path.is_file, draft.rglob("*")):
            with file.open("rb+") as written:
                os.fsync(written.fileno())
        check_new_folder(path)
        if path.exists():
            path.rmdir()  # empty: only on some systems does a folder take an empty one's place
        os.rename(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def check_new_folder(path: str | os.PathLike) -> None:
    """Raise unless ``path`` is free to become a folder: nothing is there, or an empty folder."""
    path = Path(path)
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise ValueError(f"{path} is no folder: give a new or an empty one")
    if path.exists() and any(path.iterdir()):
        names = sorted(entry.name for entry in path.iterdir())
        raise ValueError(f"{path} holds {names[:3]}: give a new or an empty folder, or delete it first")


def _clear(folder: Path, pattern: str) -> None:
    """Delete the drafts that killed processes left: nobody writes one for an hour."""
    for draft in folder.glob(pattern):
        with suppress(FileNotFoundError):  # another process may do the same
            if time.time() - draft.lstat().st_mtime > 3600:
                shutil.rmtree(draft, ignore_errors=True) if _is_folder(draft) else draft.unlink()


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def save_piece(path: str | os.PathLike, tensors: Mapping[str, Tensor], facts: Any, *, of: object = None) -> None:
    """Write tensors, and facts that JSON can hold, into one safetensors file with a hash of them and of ``of``."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    text = json.dumps(facts)
    with replacing(path) as draft:
        save_file(tensors, draft, {"facts": text, "sha256": hash_values((tensors, text, of))})


def load_piece(path: str | os.PathLike, *, of: object = None) -> tuple[dict[str, Tensor], Any]:
    """Return the tensors (on the CPU) and the facts of :func:`save_piece`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is cut short, changed, or another one's.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors, about = {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
        whole = about.get("sha256") == hash_values((tensors, about.get("facts"), of))
    except SafetensorError as problem:
        raise ValueError(f"{path} is damaged ({problem}): delete it and make it again") from problem
    if not whole:
        raise ValueError(f"{path} is damaged, or another one's: its hash does not fit; delete it and make it again")
    return tensors, json.loads(about["facts"])


class ResumeFolder:
    """Finished pieces under ``path``, made with the settings of ``fingerprint``.

    Several processes with the same settings may work in it at once: each piece is the last one's that finished it.

    Args:
        path: a new or empty folder, or one begun before.
        fingerprint: name of a setting → its hash (:func:`hash_values` and its like).
    Raises:
        ValueError: the folder holds pieces of other settings (the message names which), or something else, or its
            manifest is damaged.
    """

    def __init__(self, path: str | os.PathLike, fingerprint: Mapping[str, str]):
        self.path = Path(path)
        self.settings = dict(fingerprint)
        self.path.mkdir(parents=True, exist_ok=True)
        _clear(self.path, f"*{DRAFT}")
        manifest = self.path / MANIFEST
        if not manifest.exists():
            foreign = sorted(entry.name for entry in self.path.iterdir() if not entry.name.endswith(DRAFT))
            if foreign and not manifest.exists():  # another process may just have begun
                raise ValueError(f"{self.path} holds {foreign[:3]} but no {MANIFEST}: give an empty or a new folder")
            with replacing(manifest) as draft:
                draft.write_text(json.dumps(self.settings, indent=1), encoding="utf-8")
        saved = _read_manifest(manifest)
        changed = sorted(key for key in {*saved, *fingerprint} if saved.get(key) != fingerprint.get(key))
        if changed:
            raise ValueError(
                f"{self.path} was begun with another {', '.join(changed)}: resume with the same settings (a function "
                "counts with its code, and the globals and helpers that it reads), or give a new folder or delete it"
            )

    def _file(self, name: str) -> Path:
        """Return the piece's place: names that differ have files that differ, whatever the disk makes of letters."""
        if not _SAFE.fullmatch(name):
            readable = re.sub(r"[^a-z0-9_]+", "_", name.lower())[:40]
            name = f"{readable}~{hash_values(name)[:32]}"
        return self.path / f"{name}.safetensors"

    def __contains__(self, name: str) -> bool:
        """Whether the piece is there, and whole: a damaged one is deleted, to be made again."""
        try:
            self.load(name)
        except FileNotFoundError:
            return False
        except ValueError:
            log.warning("%s is damaged, or of other settings, and is made again", self._file(name))
            self._file(name).unlink(missing_ok=True)
            return False
        return True

    def save(self, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Store one finished piece: tensors, and facts that JSON can hold."""
        save_piece(self._file(name), tensors, dict(facts), of=(name, self.settings))

    def load(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors (on the CPU) and the facts of one finished piece.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: it is damaged, or of another name or other settings.
        """
        return load_piece(self._file(name), of=(name, self.settings))

    def mapped(self, name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a piece that were saved or loaded just now, as they lie in its file.

        They take memory once they are looked at, and the file's place on the disk until they are let go, even where
        it is deleted before.
        """
        # safetensors would read some of each: what it has looked at lies in memory, in pieces of the disk's choosing.
        path = self._file(name)
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            places = json.loads(file.read(size))
        memory = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=path.stat().st_size)
        found = {}
        for key, tensor in tensors.items():
            first = (8 + size + places[key]["data_offsets"][0]) // tensor.itemsize  # the format keeps them aligned
            whole = torch.empty(0, dtype=tensor.dtype).set_(memory)  # type: ignore[arg-type]
            found[key] = whole[first : first + tensor.numel()].view(tensor.shape)
        return found


def _read_manifest(path: Path) -> dict[str, str]:
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as problem:
        saved = problem
    if not isinstance(saved, dict):
        raise ValueError(f"{path} is damaged: give a new folder, or delete {path.parent} and begin again")
    return saved
