"""A model out of the folder in which :func:`mlcomp.layerwise.save` wrote it.

Syllabus: 2.01, 2.09
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mlcomp.context import isolated_run
from mlcomp.formats.stored import FLOATS, Dense, Stored, dtype_name
from mlcomp.layerwise.attention import is_attention
from mlcomp.layerwise.build import build_model
from mlcomp.layerwise.contents import FORMAT, layer_homes
from mlcomp.layerwise.fit import copy_model, own_forward
from mlcomp.layerwise.kept import kept_matrix, unpack_parts
from mlcomp.layerwise.matrix import is_layer, set_weight_matrix, weight_rows
from mlcomp.layerwise.packed_linear import Packed, packed_layer
from mlcomp.layerwise.save import DOCUMENT, MODEL
from mlcomp.layerwise.weights import replace_module
from mlcomp.resume import load_piece

AGAIN = "copy the whole folder again, or save the model again"


@isolated_run
def load(folder: str | os.PathLike, model: nn.Module | None = None, *, packed: bool = False) -> nn.Module:
    """Return the model that was saved in a folder.

    Args:
        folder: of :func:`mlcomp.layerwise.save`.
        model: a model of the same form, for one that no library builds by name; its weights do not matter, it is not
            modified, and the result has its modes and devices. None: built as the folder says, in eval mode, on the
            CPU.
        packed: linear layers, convolutions and embeddings keep their weight as the file holds it, packed or in the
            narrower ``dtype`` of :func:`mlcomp.layerwise.save`, and decode it when they are called
            (:class:`mlcomp.layerwise.PackedLinear`): the memory is about that of the file, a call takes longer. An
            output head that is tied to its embedding stays so. What has no such layer is dense all the same:
            experts, projections of ``nn.MultiheadAttention``, compressed weights that are tied, layers with a
            forward of their own.
    Raises:
        ValueError: no such folder; a file that is missing, cut short, changed, or of another folder; a newer format;
            a model of another form; a model that the folder does not say how to build, and none given. ImportError:
            the library that builds it is not installed.
    Guarantee: every weight is that of the saved model, bit for bit (rounded where a dtype was chosen for the file).
    """
    folder = Path(folder)
    document = read_document(folder)
    tensors = _read_tensors(folder, document)
    result = copy_model(model) if model is not None else _built(folder, document)
    try:
        _check_form(result, document)
        return _filled(result, document, tensors, packed)
    except (KeyError, TypeError, AttributeError) as problem:
        raise ValueError(f"{folder / DOCUMENT} is malformed ({problem!r}): {AGAIN}") from problem


@isolated_run
def load_results(folder: str | os.PathLike) -> dict[str, tuple[Stored, ...]]:
    """Return the packed layers of a saved model alone: what ``report.results`` was, and layers stored by their zeros.

    Raises:
        ValueError: as :func:`load`, for the files.
    """
    folder = Path(folder)
    document = read_document(folder)
    tensors = _read_tensors(folder, document)
    return {name: unpack_parts(tensors, about["parts"], f"{name}/") for name, about in document["layers"].items()}


def read_document(folder: Path) -> dict[str, Any]:
    """Return what mlcomp.json says; raise ValueError if it is not there, damaged, or of a newer format.

    The files beside it are compared with it; the tensors are not read.
    """
    path = folder / DOCUMENT
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as problem:
        raise ValueError(f"{folder} holds no saved model: there is no {path}") from problem
    except ValueError as problem:
        raise ValueError(f"{path} is damaged ({problem}): {AGAIN}") from problem
    known = ("format", "library", "model", "layers", "tensors", "tied", "buffers", "files")
    if not isinstance(document, dict) or not isinstance(document.get("format"), int):
        raise ValueError(f"{path} is not what mlcomp writes: {AGAIN}")
    if document["format"] > FORMAT:
        raise ValueError(
            f"{path} has format {document['format']}, written by mlcomp {document.get('library')}; this version "
            f"reads formats up to {FORMAT}: install a newer mlcomp"
        )
    if not all(isinstance(document.get(key), dict) for key in known[2:]):
        raise ValueError(f"{path} is not what mlcomp writes: {AGAIN}")
    for name, expected in document["files"].items():
        beside = folder / name
        if Path(name).name != name or not beside.is_file():
            raise ValueError(f"{beside} is missing: {AGAIN}")
        if hashlib.sha256(beside.read_bytes()).hexdigest() != expected:
            raise ValueError(f"{beside} was changed since the model was saved: {AGAIN}")
    return document


def _read_tensors(folder: Path, document: Mapping[str, Any]) -> dict[str, Tensor]:
    try:
        return load_piece(folder / MODEL, of=document)[0]
    except FileNotFoundError as problem:
        raise ValueError(f"{folder / MODEL} is missing: {AGAIN}") from problem
    except ValueError as problem:
        raise ValueError(
            f"{folder / MODEL} does not fit {DOCUMENT}: one of them is cut short, changed, or of another folder: "
            f"{AGAIN}"
        ) from problem


def _built(folder: Path, document: Mapping[str, Any]) -> nn.Module:
    about = document["model"]
    if "source" not in about:
        raise ValueError(
            f"{folder} holds the weights of a {about.get('class')}, which no library builds by name: make one "
            "with the same settings and pass it, load(folder, model)"
        )
    floats = [FLOATS[t["dtype"]] for t in document["tensors"].values() if t["dtype"] in FLOATS]
    return build_model(about["source"], about["options"], folder, floats[0] if floats else torch.float32)


def _check_form(model: nn.Module, document: Mapping[str, Any]) -> None:
    """Raise if the model has not the tensors that were saved."""
    here = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    saved = {key: tuple(about["shape"]) for key, about in document["tensors"].items()}
    saved |= {key: saved[first] for key, first in document["tied"].items()}
    for words, keys in (("does not have", set(saved) - set(here)), ("also has", set(here) - set(saved))):
        if keys:
            raise ValueError(f"the folder was saved from another model: this one {words} {sorted(keys)[:3]}")
    for key, shape in saved.items():
        if here[key] != shape:
            raise ValueError(f"the folder was saved from another model: {key} is {here[key]} here, {shape} there")


def _filled(model: nn.Module, document: Mapping[str, Any], tensors: dict[str, Tensor], packed: bool) -> nn.Module:
    """Put the saved weights into the model, in place, and return it."""
    layers, tied = document["layers"], document["tied"]
    homes = {about["weight"] for about in layers.values()}
    stays = {layers[name]["weight"] for name in _packable(model, document)} if packed else set()
    narrow = _narrow(model, document, tensors) if packed else {}
    for key, about in document["tensors"].items():
        shape, dtype = tuple(about["shape"]), FLOATS.get(about["dtype"])
        if key in homes or key in narrow:
            # What is replaced by a packed layer soon takes no memory until then.
            size = (1,) * len(shape) if key in stays or key in narrow else shape
            _assign(model, key, torch.empty(size, dtype=dtype, device=_device(_value(model, key))).expand(shape))
            continue
        tensor = tensors.pop(key)
        if tuple(tensor.shape) != shape or (dtype is None and dtype_name(tensor.dtype) != about["dtype"]):
            raise ValueError(f"{key} is {tensor.dtype} {tuple(tensor.shape)} in the file, and {about} in {DOCUMENT}")
        _assign(model, key, tensor if dtype is None else tensor.to(dtype))
    for key, first in tied.items():
        _assign(model, key, _value(model, first))
    for key, name in document["buffers"].items():
        if name in FLOATS:
            _assign(model, key, _value(model, key).to(FLOATS[name]))
    found = layer_homes(model)
    for name, about in layers.items():
        parts = unpack_parts(tensors, about["parts"], f"{name}/")
        layer = found[name][0]
        if about["weight"] in stays:
            model = replace_module(model, name, packed_layer(layer, parts))
        else:
            set_weight_matrix(layer, kept_matrix(layer, parts).to(layer.weight.device))
    for key, names in narrow.items():
        holder: Packed | None = None
        for name in names:
            home: Any = model.get_submodule(name)
            parts = (Dense(weight_rows(home, tensors[key])).stored(),) if holder is None else holder.parts
            module = packed_layer(home, parts, holder)
            model, holder = replace_module(model, name, module), holder or module
    return model


def _packable(model: nn.Module, document: Mapping[str, Any]) -> set[str]:
    """Return the names of those layers that may keep their packed weight: nothing else reads it."""
    modules = dict(model.named_modules(remove_duplicate=False))
    found = set()
    for name, about in document["layers"].items():
        key = about["weight"]
        dense = all(part["kind"] == "dense" for part in about["parts"])
        if not dense and key == f"{name}.weight".lstrip(".") and _homes(modules, document, key) == [name]:
            found.add(name)
    return found


def _narrow(model: nn.Module, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Return weight → the modules that may hold it in the narrower dtype of the file: nothing else reads it."""
    modules = dict(model.named_modules(remove_duplicate=False))
    found = {}
    for key, about in document["tensors"].items():
        dtype, tensor = FLOATS.get(about["dtype"]), tensors.get(key)
        if tensor is None or dtype is None or list(tensor.shape) != about["shape"]:
            continue
        if not tensor.is_floating_point() or tensor.element_size() >= dtype.itemsize:
            continue
        names = _homes(modules, document, key)
        plain = all(isinstance(modules[name], nn.Linear | nn.Embedding) for name in names)
        if names and (plain or len(names) == 1):
            found[key] = names
    return found


def _homes(modules: Mapping[str, nn.Module], document: Mapping[str, Any], key: str) -> list[str]:
    """Return the names of the modules whose weight the tensor is, each once; [] if anything else may read it."""
    found: dict[int, str] = {}
    for held in (key, *(other for other, first in document["tied"].items() if first == key)):
        name, _, leaf = held.rpartition(".")
        module, parent = modules.get(name), modules.get(name.rpartition(".")[0])
        read_past = parent is not None and parent is not module and is_attention(parent)
        if module is None or leaf != "weight" or read_past or not _stands_alone(module):
            return []
        found.setdefault(id(module), name)
    return list(found.values())


def _stands_alone(module: nn.Module) -> bool:
    """Return whether all that the module does with its weight is what a packed layer does."""
    if isinstance(module, nn.Embedding):
        own = type(module) is not nn.Embedding or "forward" in vars(module)
        return not own and module.max_norm is None  # which writes into the weight
    return is_layer(module) and own_forward(module) is None


def _value(model: nn.Module, key: str) -> Tensor:
    path, _, leaf = key.rpartition(".")
    value = getattr(model.get_submodule(path), leaf)
    assert isinstance(value, Tensor)
    return value


def _assign(model: nn.Module, key: str, value: Tensor) -> None:
    """Put a tensor in the place of a parameter or buffer, on its device; a parameter is put there as it is."""
    path, _, leaf = key.rpartition(".")
    module = model.get_submodule(path)
    old = _value(model, key)
    if leaf in module._buffers:
        module._buffers[leaf] = value.to(_device(old))
    elif isinstance(value, nn.Parameter):  # tied to the one that is there already
        module._parameters[leaf] = value
    else:
        value = value.to(_device(old))
        module._parameters[leaf] = nn.Parameter(value, requires_grad=old.requires_grad and value.is_floating_point())


def _device(tensor: Tensor) -> torch.device:
    return torch.device("cpu") if tensor.is_meta else tensor.device
