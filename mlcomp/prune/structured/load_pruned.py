"""A model with channels removed, out of a folder: the shapes in the file say what is left of each layer.

A configuration states one width for all layers, so a library builds the whole model and refuses the smaller weights.
Here the built model, whose weights have no values yet, takes the shapes of the file first.   Syllabus: 5.03
"""

import os
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from mlcomp.context import isolated
from mlcomp.formats.stored import FLOATS
from mlcomp.layerwise.build import build_model
from mlcomp.layerwise.load import load, read_document
from mlcomp.prune.structured.sizes import HEADS, WIDTHS, remember_sizes
from mlcomp.prune.structured.weight_axes import find_axes


@isolated
def load_pruned(folder: str | os.PathLike) -> nn.Module:
    """Return the model with channels removed that :func:`mlcomp.layerwise.save` wrote into a folder.

    Args:
        folder: of ``save(remove_channels(…), {}, folder)``: a model that a library builds by name.
    Returns:
        The model in eval mode, on the CPU; the sizes that its modules state fit its weights, and its configuration is
        as it was saved.
    Raises:
        ValueError: as :func:`mlcomp.layerwise.load`; a saved model that no library builds (make a smaller one by
            ``remove_channels`` again and pass it to ``load``); a weight with other dimensions.
    Guarantee: every weight is that of the saved model, bit for bit; a model of which nothing was removed comes back,
        too.
    Limit: the ε of an RMSNorm over removed channels is no weight; it is as the configuration states it.
    """
    folder = Path(folder)
    about = read_document(folder)
    if "source" not in about["model"]:
        raise ValueError(
            f"{folder} holds the weights of a {about['model'].get('class')}, which no library builds by name: remove "
            "the same channels from one of its kind, and pass that, mlcomp.layerwise.load(folder, model)"
        )
    floats = [FLOATS[t["dtype"]] for t in about["tensors"].values() if t["dtype"] in FLOATS]
    model = build_model(about["model"]["source"], about["model"]["options"], folder, (floats or [torch.float32])[0])
    take_shapes(model, {name: tuple(t["shape"]) for name, t in about["tensors"].items()})
    return load(folder, model)


def take_shapes(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Give the tensors of a model whose values do not matter these shapes, and its modules the sizes with them."""
    before = _outputs(model)
    new: dict[int, Tensor] = {}
    for name, module in model.named_modules():
        for held in (module._parameters, module._buffers):
            for key, old in list(held.items()):
                path = f"{name}.{key}" if name else key
                if old is not None and path in shapes and id(old) not in new:
                    new[id(old)] = _reshaped(path, old, shapes[path])
                held[key] = new.get(id(old), old)  # one that is tied to another stays so
        if isinstance(module, _ConvNd) and module.groups > 1:
            _count_groups(module)
    remember_sizes(model, {})
    changes: dict[str, set[Fraction]] = {}
    for name, size in _outputs(model).items():
        if size != before[name]:
            changes.setdefault(name.rpartition(".")[0], set()).add(Fraction(size, before[name]))
    for name, found in changes.items():
        if len(found) == 1:
            _scale(model.get_submodule(name), *found)


def _outputs(model: nn.Module) -> dict[str, int]:
    return {axis.name: axis.size for axis in find_axes(model) if axis.axis == "out"}


def _reshaped(name: str, old: Tensor, shape: tuple[int, ...]) -> Tensor:
    if old.ndim != len(shape):
        raise ValueError(f"the folder was saved from another model: {name} is {tuple(old.shape)} here, {shape} there")
    if tuple(old.shape) == shape:
        return old
    new = torch.zeros(shape, dtype=old.dtype, device=old.device)
    return nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new


def _count_groups(layer: _ConvNd) -> None:
    """Set the channels of a grouped convolution by its weight; a depthwise one has as many groups as inputs."""
    turned = isinstance(layer, _ConvTransposeNd)
    rows, per_group = layer.weight.shape[:2]
    if layer.groups == layer.in_channels:
        layer.groups = rows if turned else rows * layer.groups // layer.out_channels
    layer.in_channels = rows if turned else per_group * layer.groups
    layer.out_channels = per_group * layer.groups if turned else rows


def _scale(module: nn.Module, change: Fraction) -> None:
    """Correct whole numbers that count heads, or channels of a hidden layer, in the module around the layers."""
    for key in (*HEADS, *WIDTHS):
        size = getattr(module, key, None)
        if isinstance(size, int) and (size * change).denominator == 1:
            setattr(module, key, int(size * change))
