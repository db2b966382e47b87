"""What of a model is written into a file: tensors, each once, and what has to be said about them.

Layers with packed results are written as those, all other layers without their zeros where that is less.
Syllabus: 2.01
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import mlcomp
from mlcomp.formats.storage import stored_nbytes
from mlcomp.formats.stored import Stored, dtype_name, store
from mlcomp.layerwise.attention import is_attention
from mlcomp.layerwise.experts import find_experts
from mlcomp.layerwise.fit import place, unfit
from mlcomp.layerwise.kept import kept_matrix, pack_parts
from mlcomp.layerwise.matrix import Layer, is_layer, named_modules, weight_matrix, weight_rows
from mlcomp.layerwise.packed_linear import Packed
from mlcomp.layerwise.running import check_data

FORMAT = 1


def contents(
    model: nn.Module, results: Mapping[str, Sequence[Stored]], dtype: torch.dtype | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of the file, and what the document says about them.

    Raises:
        ValueError: as :func:`mlcomp.layerwise.save`.
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
    """Return the same tensors; those that share bytes with others get some of their own, as the file needs it."""
    found, end = dict(tensors), (0, 0)
    places = {key: where for key, tensor in tensors.items() if (where := place(tensor)) is not None}
    for key in sorted(places, key=places.__getitem__):
        memory, start, last = places[key]
        if memory == end[0] and start < end[1]:
            found[key] = tensors[key].clone()
        else:
            end = (memory, last)
    return found
