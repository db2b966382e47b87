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
from torch import Tensor, nn

import mlcomp
from mlcomp.checks import check_dtype
from mlcomp.context import isolated_run
from mlcomp.formats.storage import stored_nbytes
from mlcomp.formats.stored import Stored, dtype_name, store
from mlcomp.layerwise.attention import is_attention
from mlcomp.layerwise.build import check_source
from mlcomp.layerwise.experts import find_experts
from mlcomp.layerwise.fit import place, unfit
from mlcomp.layerwise.kept import kept_matrix, pack_parts
from mlcomp.layerwise.matrix import Layer, is_layer, named_modules, weight_matrix, weight_rows
from mlcomp.layerwise.packed_linear import Packed
from mlcomp.layerwise.running import check_data
from mlcomp.resume import save_piece

MODEL, DOCUMENT = "model.safetensors", "mlcomp.json"
FORMAT = 1
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


def contents(
    model: nn.Module, results: Mapping[str, Sequence[Stored]], dtype: torch.dtype | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of the file, and what the document says about them.

    Raises:
        ValueError: as :func:`save`.
    """
    check_data(model)
    state = _state(model)
    tied = _tied(state)
    layers = {name: (layer, tied.get(key, key)) for name, (layer, key) in layer_homes(model).items()}
    unknown = sorted(set(results) - set(layers))
    if unknown:
        raise ValueError(f"results has layers that the model does not have: {unknown[:5]}")
    packed = _packed(layers, results)
    homes = {layers[name][1] for name in packed}
    tensors: dict[str, Tensor] = {}
    listed: dict[str, Any] = {}
    entries: dict[str, Any] = {}
    for name, parts in packed.items():
        part_tensors, facts = pack_parts(parts, f"{name}/")
        tensors |= part_tensors
        entries[name] = {"weight": layers[name][1], "parts": facts}
    for key, tensor in state.items():
        if key not in tied:
            listed[key] = {"dtype": dtype_name(tensor.dtype), "shape": list(tensor.shape)}
            if key not in homes:
                tensors[key] = _narrow(key, tensor, dtype)
    unsaved = {name: b for name, b in model.named_buffers() if name not in state}
    document = {"format": FORMAT, "library": mlcomp.__version__, "layers": entries, "tensors": listed, "tied": tied}
    return _apart(tensors), document | {"buffers": {name: dtype_name(b.dtype) for name, b in unsaved.items()}}


def layer_homes(model: nn.Module) -> dict[str, tuple[Layer, str]]:
    """Return name → layer, and the key of the tensor in ``model.state_dict()`` that its weight is, or is a part of.

    Projections of an ``nn.MultiheadAttention`` and experts are among them, as :func:`mlcomp.layerwise.compress` names
    them; layers whose weight is computed are not.
    """
    modules = dict(model.named_modules())
    found: dict[str, tuple[Layer, str]] = {}
    for name, layer in named_modules(model):
        if not is_layer(layer) or "weight" not in layer._parameters:
            continue
        whole, _, child = name.rpartition(".")
        attention = modules.get(whole)
        if name not in modules and attention is not None and is_attention(attention):
            packed = attention.in_proj_weight is not None
            key = "in_proj_weight" if packed else f"{child}_weight"
            found[name] = (layer, f"{whole}.{key}" if whole else key)
        else:
            found[name] = (layer, f"{name}.weight" if name else "weight")
    return found | {name: (layer, name.rpartition(".")[0]) for name, layer in find_experts(model).items()}


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's parameters and persistent buffers by name, without gradient."""
    packed = [name for name, module in model.named_modules() if isinstance(module, Packed)]
    if packed:
        raise ValueError(f"layer {packed[0]!r} is packed already: copy the folder it came from, or load it dense")
    state = model.state_dict()
    own = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    own |= {name for name, _ in model.named_buffers(remove_duplicate=False)}
    for key, value in state.items():
        if key not in own:
            raise ValueError(f"the model keeps {key!r} ({type(value).__name__}) by a state_dict of its own")
    return {key: value.detach() for key, value in state.items()}


def _tied(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return name → the first name of the same tensor, for all others."""
    first: dict[Any, str] = {}
    found = {}
    for key, tensor in state.items():
        where = place(tensor)
        if where is not None:
            same = first.setdefault((where, tensor.shape, tensor.stride(), tensor.dtype), key)
            if same != key:
                found[key] = same
    return found


def _packed(
    layers: Mapping[str, tuple[Layer, str]], results: Mapping[str, Sequence[Stored]]
) -> dict[str, Sequence[Stored]]:
    """Return the layers that are written packed. Where a tensor holds several, all of them are, or none."""
    once: dict[Any, str] = {}
    for name in (*results, *layers):  # a weight that several layers share is written for one, with its result
        weight = layers[name][0].weight
        once.setdefault((place(weight) or name, weight.stride()), name)
    names = [name for name in layers if name in once.values()]
    smaller = {name for name in names if name in results or _is_smaller(layers[name][0])}
    homes = {layers[name][1] for name in smaller}
    found: dict[str, Sequence[Stored]] = {}
    for name in names:
        layer, key = layers[name]
        if name in results:
            found[name] = results[name]
            if not torch.equal(kept_matrix(layer, results[name]).to(layer.weight.device), weight_matrix(layer)):
                raise ValueError(f"layer {name!r} is not what its result says: it was changed after compressing")
        elif key in homes:
            found[name] = (store(weight_rows(layer, layer.weight.detach())),)
    return found


def _is_smaller(layer: Layer) -> bool:
    """Return whether the layer's weight takes less without its zeros."""
    return unfit(layer, product=False) is None and stored_nbytes(layer.weight.detach()) < layer.weight.nbytes


def _narrow(key: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    if dtype is None or not tensor.is_floating_point() or tensor.element_size() <= dtype.itemsize:
        return tensor
    narrow = tensor.to(dtype)
    if bool((torch.isfinite(tensor) & ~torch.isfinite(narrow)).any()):
        raise ValueError(f"{key} holds {float(tensor.abs().max()):.3g}, beyond {dtype}: choose bfloat16 or float32")
    return narrow


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the same tensors; those that share memory with others get one of their own, as the file needs it."""
    seen: set[int] = set()
    found = {}
    for key, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        found[key] = tensor.clone() if memory in seen and tensor.numel() else tensor
        seen.add(memory)
    return found


def _about(model: nn.Module, source: str | None, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return how the model is built again."""
    kind = type(model)
    about: dict[str, Any] = {"class": f"{kind.__module__}.{kind.__qualname__}"}
    if source is not None:
        check_source(source, options or {})
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
        os.replace(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
