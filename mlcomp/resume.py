"""A folder of finished pieces of a long computation, which survives a kill at any moment.

Each piece is one safetensors file, written beside its place, flushed and renamed, so that it is there whole or not at
all. A fingerprint of everything that the result depends on keeps pieces of different settings apart.
"""

import functools
import hashlib
import json
import os
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

MANIFEST = "manifest.json"


class ResumeFolder:
    """Finished pieces under ``path``, made with the settings of ``fingerprint``.

    Raises:
        ValueError: the folder holds pieces of other settings (the message names which), or something else.
    """

    def __init__(self, path: str | os.PathLike, fingerprint: Mapping[str, str]):
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        manifest = self.path / MANIFEST
        if not manifest.exists():
            foreign = [entry.name for entry in self.path.iterdir() if not entry.name.endswith(".partial")]
            if foreign:
                raise ValueError(f"{self.path} holds {foreign[:3]} but no {MANIFEST}: give an empty or a new folder")
            _write(manifest, lambda target: target.write_text(json.dumps(dict(fingerprint), indent=1)))
        saved = json.loads(manifest.read_text())
        changed = sorted(key for key in {*saved, *fingerprint} if saved.get(key) != fingerprint.get(key))
        if changed:
            raise ValueError(
                f"{self.path} was begun with another {', '.join(changed)}: resume with the same settings, "
                "or give a new folder"
            )

    def _file(self, name: str) -> Path:
        return self.path / (quote(name, safe="") + ".safetensors")

    def __contains__(self, name: str) -> bool:
        return self._file(name).exists()

    def save(self, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Store one finished piece: tensors, and facts that JSON can hold."""
        tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        metadata = {"facts": json.dumps(dict(facts))}
        _write(self._file(name), lambda target: save_file(tensors, target, metadata))

    def load(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors (on the CPU) and the facts of one finished piece."""
        with safe_open(self._file(name), framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["facts"])


def _write(path: Path, write: Any) -> None:
    partial = path.with_name(path.name + ".partial")
    write(partial)
    with open(partial, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def hash_values(values: Any) -> str:
    """Return a SHA-256 of nested tensors, mappings, sequences, numbers, strings and functions.

    The same values give the same hash in another process.

    Raises:
        ValueError: something without a stable description, such as an object with Python's default ``repr``.
    """
    digest = hashlib.sha256()
    _feed(digest, values)
    return digest.hexdigest()


def hash_model(model: nn.Module) -> str:
    """Return a SHA-256 of the model's parameters and buffers: names, types, shapes and values."""
    return hash_values(dict(model.state_dict()))


def hash_batches(batches: Iterable) -> str:
    """Return a SHA-256 of all batches; they are read once."""
    digest = hashlib.sha256()
    for batch in batches:
        _feed(digest, batch)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        digest.update(f"tensor {value.dtype} {tuple(value.shape)} ".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            digest.update(flat.view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        digest.update(b"mapping ")
        for key in value:
            _feed(digest, str(key))
            _feed(digest, value[key])
    elif isinstance(value, tuple | list):
        digest.update(f"sequence {len(value)} ".encode())
        for entry in value:
            _feed(digest, entry)
    elif isinstance(value, functools.partial):
        _feed(digest, ("partial", value.func, value.args, dict(sorted(value.keywords.items()))))
    elif isinstance(value, types.FunctionType):
        _feed_function(digest, value)
    else:
        text = repr(value)
        if " at 0x" in text:
            raise ValueError(
                f"cannot tell {text} from another one after a restart: use a function with functools.partial, "
                "or give its class a __repr__ that shows its options"
            )
        digest.update(f"{type(value).__qualname__} {text} ".encode())


def _feed_function(digest: Any, function: types.FunctionType) -> None:
    """Name, bytecode, constants, defaults and captured values: an edited lambda is another one."""
    code = function.__code__
    digest.update(f"function {function.__module__}.{function.__qualname__} ".encode() + code.co_code)
    constants = [c for c in code.co_consts if not isinstance(c, types.CodeType)]
    captured = [cell.cell_contents for cell in function.__closure__ or ()]
    _feed(digest, (constants, list(code.co_names), function.__defaults__, function.__kwdefaults__, captured))
