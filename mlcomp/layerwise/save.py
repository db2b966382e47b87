"""A compressed model in a folder: one safetensors file, and a JSON file that says what is in it.

Compressed layers are written as packed by their methods, so the file has the size that the report counts. Nothing is
pickled: who opens the folder runs no code of it.   Syllabus: 2.01, 2.09
"""

import hashlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mlcomp.checks import check_dtype
from mlcomp.context import isolated_run
from mlcomp.formats.stored import Stored
from mlcomp.layerwise.build import check_source
from mlcomp.layerwise.contents import contents
from mlcomp.resume import save_piece

MODEL, DOCUMENT = "model.safetensors", "mlcomp.json"
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@isolated_run
def save(
    model: nn.Module,
    results: Mapping[str, Sequence[Stored]],
    folder: str | os.PathLike,
    *,
    dtype: torch.dtype | None = None,
    tokenizer: Any = None,
    source: str | None = None,
    options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a compressed model into a folder, layers packed; :func:`mlcomp.layerwise.load` reads it.

    Args:
        model: what :func:`mlcomp.layerwise.compress` returned; not modified. The weights of a layer that is not among
            ``results`` are written without their zeros where that is less.
        results: ``report.results``: layer → its packed results; may be empty.
        folder: a new or an empty one; it is there whole afterwards, or not at all.
        dtype: of the file, for what is not compressed (embeddings, norms): float16, bfloat16 or float32. None: the
            model's own. Loaded, they have the model's own dtype again, with the rounded values.
        tokenizer: of a transformers model, saved beside it (anything with ``save_pretrained``).
        source: how to build the model: "torchvision:resnet18" or "timm:resnet18". None: a model of transformers is
            built from its configuration, which is saved, too; for any other, loading needs a model of the same form.
        options: of the builder that ``source`` names: numbers, such as {"num_classes": 10}.
        overwrite: replace a model that was saved in this folder before.
    Returns:
        The folder.
    Raises:
        ValueError: a result whose layer is not in the model, or was changed since it was compressed; a folder that
            holds something else; weights without data; a model that is packed already, or that keeps state which is
            no tensor; a number too large for ``dtype``. OSError: the disk is full.
    Guarantee: :func:`load` gives each layer the same weights, bit for bit.
    """
    folder = Path(folder)
    check_folder(folder, overwrite)
    if dtype is not None:
        check_dtype("dtype", dtype, DTYPES)
    about = _about(model, source, options)
    tensors, document = contents(model, results, dtype)
    with _new_folder(folder) as draft:
        _write_side_files(model, tokenizer, about, draft)
        document |= {"model": about, "files": {path.name: _sha256(path) for path in sorted(draft.iterdir())}}
        document = json.loads(json.dumps(document))  # as it will be read
        save_piece(draft / MODEL, tensors, None, of=document)
        (draft / DOCUMENT).write_text(json.dumps(document, indent=1), encoding="utf-8")
    return folder


def _about(model: nn.Module, source: str | None, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return how the model is built again."""
    kind = type(model)
    about: dict[str, Any] = {"class": f"{kind.__module__}.{kind.__qualname__}"}
    if source is not None:
        if check_source(source, options or {})[0] == "transformers":
            raise ValueError("a model of transformers is built from its own configuration: leave source out")
        return about | {"source": source, "options": dict(options or {})}
    if options:
        raise ValueError(f"options belong to a source, and there is none: {dict(options)}")
    transformers = sys.modules.get("transformers")
    if kind.__module__.startswith("transformers.") and getattr(transformers, kind.__name__, None) is kind:
        return about | {"source": f"transformers:{kind.__name__}", "options": {}}
    return about


def _write_side_files(model: Any, tokenizer: Any, about: Mapping[str, Any], folder: Path) -> None:
    """Write a transformers model's configuration, and the tokenizer."""
    if about.get("source", "").startswith("transformers:"):
        config = json.loads(model.config.to_json_string()) | {"architectures": [type(model).__name__]}
        (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        generation = getattr(model, "generation_config", None)
        if generation is not None:
            generation.to_json_file(folder / "generation_config.json")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _sha256(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"the tokenizer wrote a folder, {path.name}, where files were expected")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_folder(folder: Path, overwrite: bool) -> None:
    """Raise unless a model may be written there: nothing of the user's is lost."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file: give a folder")
    here = {entry.name for entry in folder.iterdir()}
    if not here:
        return
    try:
        own = {MODEL, DOCUMENT, *json.loads((folder / DOCUMENT).read_text(encoding="utf-8"))["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        own = set()
    foreign = sorted(here - own)
    if foreign:
        raise ValueError(f"{folder} holds {foreign[:3]}, which is no saved model's: give an empty or a new folder")
    if not overwrite:
        raise ValueError(f"{folder} holds a saved model: pass overwrite=True to replace it, or give a new folder")


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder beside ``folder``; afterwards it takes its place. After an error there is nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(4)
    draft, old = (folder.with_name(f"{folder.name}.{token}.{end}") for end in ("partial", "old"))
    draft.mkdir()
    try:
        yield draft
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(draft, folder)
        except OSError:
            if old.exists():
                os.replace(old, folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
