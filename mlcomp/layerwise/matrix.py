r"""Linear and convolutional layers seen as matrices: the weight, and the inputs it multiplies.

Notation: X inputs (inp, samples). A convolution is a linear layer on patches: its weight is (out, inp/groups·taps),
its samples are the patches that the kernel visits. A grouped convolution is one such layer for each group. A
transposed convolution is a convolution of its input with zeros put between the pixels, its kernel turned round.
Source: Chellapilla, Puri, Simard 2006, "High performance convolutional neural networks for document processing";
Dumoulin, Visin 2016, arXiv:1603.07285, chapter 4 (transposed convolutions).   Syllabus: 2.01
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from mlcomp.context import isolated
from mlcomp.layerwise.attention import is_attention, projections


class _ByName(type):
    def __instancecheck__(cls, instance: object) -> bool:
        kinds = (f"{c.__module__}.{c.__name__}" for c in type(instance).__mro__)
        return "transformers.pytorch_utils.Conv1D" in kinds


class TurnedLinear(nn.Module, metaclass=_ByName):
    """Stands for transformers' Conv1D, a linear layer whose weight is (inp, out): known by name, never imported."""

    weight: nn.Parameter
    bias: nn.Parameter


Layer = nn.Linear | _ConvNd | TurnedLinear

KINDS = "nn.Linear, nn.Conv1d to 3d, nn.ConvTranspose1d to 3d or transformers' Conv1D"

# Patches are unfolded for this many floats at a time (256 MB in float32), whatever the batch size.
UNFOLD_FLOATS = 2**26


def is_layer(module: nn.Module) -> TypeGuard[Layer]:
    """Return whether ``module`` is a linear or convolutional layer, which can be seen as a matrix."""
    return isinstance(module, Layer)


def find_layers(model: nn.Module, names: Iterable[str] | None = None) -> dict[str, Layer]:
    """Return name → layer of the named linear and convolutional layers of ``model``, in the order of ``names``.

    Args:
        model: the layers are its own, not copies. The projections of an ``nn.MultiheadAttention`` count as layers of
            it, "q_proj", "k_proj", "v_proj" and "out_proj": see :mod:`mlcomp.layerwise.attention`.
        names: as in ``model.named_modules()``. None: all of them, in its order.
    Raises:
        ValueError: an unknown name, a module of another kind, no layer at all.
    """
    modules = dict(named_modules(model))
    if names is None:
        found = {name: module for name, module in modules.items() if is_layer(module)}
    else:
        found = {name: _layer(modules, name) for name in names}
    if not found:
        raise ValueError(f"no layers: the model has no {KINDS}, or none was chosen")
    return found


def find_layer(model: nn.Module, name: str) -> Layer:
    """Return one layer of ``model``; errors as in :func:`find_layers`."""
    return find_layers(model, [name])[name]


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield what ``model.named_modules()`` does, and the projections of each ``nn.MultiheadAttention`` after it."""
    for name, module in model.named_modules():
        yield name, module
        if is_attention(module):
            for child, layer in projections(module).items():
                yield f"{name}.{child}" if name else child, layer


def _layer(modules: Mapping[str, nn.Module], name: str) -> Layer:
    if name not in modules:
        raise ValueError(f"the model has no layer {name!r}")
    module = modules[name]
    if not is_layer(module):
        raise ValueError(f"layer {name!r} is {type(module).__name__}; only {KINDS} can be used")
    return module


def weight_rows(module: Layer | nn.Embedding, weight: Tensor | None = None) -> Float[Tensor, "out inp"]:
    """Return the layer's weight as one matrix, a row for each output channel, in its own dtype; differentiable.

    Args:
        module: of an embedding a row is a vector; its ``weight`` is read where none is given.
        weight: a tensor of that shape (a mask, a gradient).
    Returns:
        (out, inp/groups·taps); a view where the layer's memory allows it.
    """
    weight = module.weight if weight is None else weight
    if isinstance(module, _ConvTransposeNd):
        grouped = weight.reshape(module.groups, -1, *weight.shape[1:]).transpose(1, 2)
        return grouped.flip(_taps(grouped, 3)).flatten(0, 1).flatten(1)
    return weight.T if isinstance(module, TurnedLinear) else weight.flatten(1)


def weight_from_rows(module: Layer | nn.Embedding, rows: Float[Tensor, "out inp"]) -> Tensor:
    """Return the tensor of the shape of ``module.weight`` that :func:`weight_rows` turns into ``rows``."""
    shape = module.weight.shape
    if isinstance(module, _ConvTransposeNd):
        grouped = rows.reshape(module.groups, shape[1], shape[0] // module.groups, *shape[2:])
        return grouped.flip(_taps(grouped, 3)).transpose(1, 2).reshape(shape)
    return rows.T if isinstance(module, TurnedLinear) else rows.reshape(shape)


def _taps(x: Tensor, first: int) -> list[int]:
    return list(range(first, x.ndim))


@isolated
def weight_matrix(module: Layer) -> Float[Tensor, "groups out inp"]:
    """Return the layer's weight, one matrix (out/groups, inp/groups·taps) a group; float32 unless it is float64."""
    rows = weight_rows(module, module.weight.detach())
    rows = rows if rows.dtype == torch.float64 else rows.float()
    groups = getattr(module, "groups", 1)
    return rows.reshape(groups, len(rows) // groups, -1)


@isolated
@torch.no_grad()
def set_weight_matrix(module: Layer, matrix: Float[Tensor, "*groups out inp"]) -> None:
    """Write the matrices of :func:`weight_matrix` (or one of all rows) into the layer, in its dtype, in place."""
    module.weight.copy_(weight_from_rows(module, matrix.flatten(0, -2)))


def input_matrices(module: Layer, x: Tensor) -> Iterator[Float[Tensor, "groups inp samples"]]:
    """Yield the samples that ``module`` sees when called on ``x``, some at a time, one matrix (inp, samples) a group.

    Args:
        module: a linear layer (x is (…, inp)) or a convolution of one to three dimensions, transposed or not (x is
            (batch, channels, *size), or without batch), with any stride, padding, padding mode, dilation and groups.
        x: the layer's input; not modified.
    Cost: the patches of a convolution take taps/strides times the memory of ``x`` (a transposed one's, taps·strides);
        at most 2²⁶ of them are made at a time, or one image's.
    """
    if not isinstance(module, _ConvNd):
        yield x.reshape(1, -1, x.shape[-1]).mT
        return
    x = x if x.ndim == module.weight.ndim else x.unsqueeze(0)
    if isinstance(module, _ConvTransposeNd):
        x, stride = _with_zeros_between(module, x), (1,) * len(module.stride)
    else:
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x, stride = F.pad(x, _padding(module), mode=mode), module.stride
    per_image = x[0].numel() * math.prod(module.kernel_size) // math.prod(stride) + 1
    for part in x.split(max(1, UNFOLD_FLOATS // per_image)):
        yield _patches(part, module, stride)


def _patches(x: Tensor, module: _ConvNd, stride: tuple[int, ...]) -> Float[Tensor, "groups inp samples"]:
    for dim, (k, d, s) in enumerate(zip(module.kernel_size, module.dilation, stride, strict=True), 2):
        x = x.unfold(dim, d * (k - 1) + 1, s)[..., ::d]  # (batch, channels, *positions, *taps)
    rank = len(stride)
    x = x.unflatten(1, (module.groups, -1))
    positions, taps = range(3, 3 + rank), range(3 + rank, 3 + 2 * rank)
    return x.permute(1, 2, *taps, 0, *positions).reshape(
        module.groups, -1, x.shape[0] * math.prod(x.shape[3 : 3 + rank])
    )


def _with_zeros_between(module: _ConvTransposeNd, x: Tensor) -> Tensor:
    """Return the input that an ordinary convolution of stride 1 with the turned kernel needs for the same output."""
    for dim, s in enumerate(module.stride, 2):
        spread = x.new_zeros(*x.shape[:dim], (x.shape[dim] - 1) * s + 1, *x.shape[dim + 1 :])
        spread.index_copy_(dim, torch.arange(x.shape[dim], device=x.device) * s, x)
        x = spread
    pads: list[int] = []
    sides: Any = zip(module.kernel_size, module.dilation, module.padding, module.output_padding, strict=True)
    for k, d, p, more in sides:
        edge = d * (k - 1) - int(p)
        pads = [edge, edge + more, *pads]
    return F.pad(x, pads)


def _padding(module: _ConvNd) -> list[int]:
    """Return what F.pad wants, the last dimension first; "same" puts an odd remainder right and below."""
    if module.padding == "valid":
        return [0, 0] * len(module.kernel_size)
    pads: list[int] = []
    if isinstance(module.padding, str):  # "same"
        for d, k in zip(module.dilation, module.kernel_size, strict=True):
            pads = [d * (k - 1) // 2, d * (k - 1) - d * (k - 1) // 2, *pads]
        return pads
    for p in module.padding:
        pads = [int(p), int(p), *pads]
    return pads
