r"""Linear and convolutional layers seen as matrices: the weight, and the inputs it multiplies.

Notation: X inputs (inp, samples). A convolution is a linear layer on patches: its weight is (out, inp/groups·kh·kw),
its samples are the patches that the kernel visits. A grouped convolution is one such layer for each group.
Source: Chellapilla, Puri, Simard 2006, "High performance convolutional neural networks for document processing".
Syllabus: 2.01
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeGuard

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mlcomp.context import isolated

Layer = nn.Linear | nn.Conv2d

# Patches are unfolded for this many floats at a time (256 MB in float32), whatever the batch size.
UNFOLD_FLOATS = 2**26


def is_layer(module: nn.Module) -> TypeGuard[Layer]:
    """Return whether ``module`` is a layer that can be seen as a matrix: ``nn.Linear`` or ``nn.Conv2d``."""
    return isinstance(module, Layer)


def find_layers(model: nn.Module, names: Iterable[str] | None = None) -> dict[str, Layer]:
    """Return name → layer of the named linear and convolutional layers of ``model``, in the order of ``names``.

    Args:
        model: the layers are its own, not copies.
        names: as in ``model.named_modules()``. None: all of them, in its order.
    Raises:
        ValueError: an unknown name, a module of another kind, no layer at all.
    """
    modules = dict(model.named_modules())
    if names is None:
        found = {name: module for name, module in modules.items() if is_layer(module)}
    else:
        found = {name: _layer(modules, name) for name in names}
    if not found:
        raise ValueError("no layers: the model has no nn.Linear or nn.Conv2d, or none was chosen")
    return found


def find_layer(model: nn.Module, name: str) -> Layer:
    """Return one layer of ``model``; errors as in :func:`find_layers`."""
    return find_layers(model, [name])[name]


def _layer(modules: Mapping[str, nn.Module], name: str) -> Layer:
    if name not in modules:
        raise ValueError(f"the model has no layer {name!r}")
    module = modules[name]
    if not is_layer(module):
        raise ValueError(f"layer {name!r} is {type(module).__name__}; only nn.Linear and nn.Conv2d can be used")
    return module


@isolated
def weight_matrix(module: Layer) -> Float[Tensor, "groups out inp"]:
    """Return the layer's weight, one matrix (out/groups, inp/groups·kh·kw) a group; float32 unless it is float64."""
    weight = module.weight.detach()
    weight = weight if weight.dtype == torch.float64 else weight.float()
    groups = getattr(module, "groups", 1)
    return weight.reshape(groups, weight.shape[0] // groups, -1)


@isolated
@torch.no_grad()
def set_weight_matrix(module: Layer, matrix: Float[Tensor, "groups out inp"]) -> None:
    """Write the matrices of :func:`weight_matrix` into the layer, in the layer's own dtype and shape, in place."""
    module.weight.copy_(matrix.reshape(module.weight.shape))


def input_matrices(module: Layer, x: Tensor) -> Iterator[Float[Tensor, "groups inp samples"]]:
    """Yield the samples that ``module`` sees when called on ``x``, some at a time, one matrix (inp, samples) a group.

    Args:
        module: ``nn.Linear`` (x is (…, inp)) or ``nn.Conv2d`` (x is (batch, channels, height, width), or without
            batch), with any stride, padding, padding mode, dilation and groups.
        x: the layer's input; not modified.
    Cost: the patches of a convolution take kh·kw/stride² times the memory of ``x``; at most 2²⁶ of them are made at
        a time, or one image's.
    """
    if isinstance(module, nn.Linear):
        yield x.reshape(1, -1, x.shape[-1]).mT
        return
    x = x if x.ndim == 4 else x.unsqueeze(0)
    x = F.pad(x, _padding(module), mode="constant" if module.padding_mode == "zeros" else module.padding_mode)
    area = module.kernel_size[0] * module.kernel_size[1]
    per_image = x[0].numel() * area // (module.stride[0] * module.stride[1]) + 1
    for part in x.split(max(1, UNFOLD_FLOATS // per_image)):
        patches = F.unfold(part, module.kernel_size, dilation=module.dilation, stride=module.stride)
        patches = patches.reshape(len(part), module.groups, -1, patches.shape[-1])
        yield patches.permute(1, 2, 0, 3).flatten(2)


def _padding(module: nn.Conv2d) -> list[int]:
    """Return what F.pad wants (left, right, top, bottom); "same" puts an odd remainder right and below."""
    if module.padding == "valid":
        return [0, 0, 0, 0]
    if isinstance(module.padding, str):  # "same"
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return [total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2]
    return [module.padding[1], module.padding[1], module.padding[0], module.padding[0]]
