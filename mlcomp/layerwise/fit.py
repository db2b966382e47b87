"""Which layers may be exchanged, which must be left and why, and a copy of a model that keeps its ties.

This is the one place that knows what a layer's weight can be. A layer is fit if its weight is a plain parameter that
nobody else holds and, where the inputs that it multiplies have to be known, if its forward is that of its kind.

Syllabus: 2.01
"""

import copy
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from mlcomp.layerwise.attention import is_attention
from mlcomp.layerwise.matrix import Layer, find_layers

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_EMPTY = (UninitializedParameter, UninitializedBuffer)

# Where torch and transformers define the forward passes that are known here.
_KNOWN = ("torch.nn.modules.linear", "torch.nn.modules.conv", "transformers.pytorch_utils")


def unfit(layer: Layer, *, product: bool) -> str | None:
    """Return why the layer's weight cannot be exchanged, and the way out; None if it can.

    With ``product`` also why it is not known what the weight multiplies: the layer has a forward of its own.
    """
    parameters = layer._parameters
    if "weight" not in parameters:
        if "weight_orig" in parameters and "weight_mask" in layer._buffers:
            return 'its weight is computed (pruned with a mask): torch.nn.utils.prune.remove(layer, "weight") first'
        if "weight_g" in parameters:
            return "its weight is computed (weight norm): torch.nn.utils.remove_weight_norm(layer) first"
        if isinstance(vars(layer).get("weight"), Tensor):
            return "its weight is packed: load the folder without packed=True"
        return (
            "its weight is computed (parametrized): torch.nn.utils.parametrize.remove_parametrizations(layer, "
            '"weight") first'
        )
    weight = layer.weight
    if isinstance(weight, _EMPTY):
        return "its weight is not initialized: run the model once"
    if weight.is_meta:
        return "its weight has no data (device meta: offloaded, or not loaded yet): load the model's weights first"
    if type(weight.data) is not Tensor or weight.layout != torch.strided or weight.is_quantized:
        return f"its weight is packed or of another layout ({type(weight.data).__name__}, {weight.dtype})"
    if weight.dtype not in DTYPES:
        return f"its weight is {weight.dtype}, packed or with scales of its own: only 16 to 64 bit floats are taken"
    return own_forward(layer) if product else None


def own_forward(layer: Layer) -> str | None:
    """Return that the layer has a forward of its own; None if it computes what its kind does."""
    kind = next(c for c in type(layer).__mro__ if "forward" in vars(c) or "_conv_forward" in vars(c))
    # A wrapper that only moves tensors to the device (accelerate's) leaves this mark.
    exchanged = "forward" in vars(layer) and not hasattr(layer, "_hf_hook")
    if kind.__module__ in _KNOWN and not exchanged:
        return None
    return f"{type(layer).__name__} has a forward of its own, so what its weight multiplies is not known"


def choose_layers(
    model: nn.Module, names: Iterable[str] | None = None, *, tied: str = "refuse", product: bool = False
) -> tuple[dict[str, Layer], dict[str, str]]:
    """Return name → layer of those whose weight may be exchanged, and name → reason of those that must be left.

    Args:
        model: not modified.
        names: of layers; None: all. What was named and cannot be exchanged is an error.
        tied: a weight whose memory another module holds, too (also as a transposed view) is left ("refuse"), or
            taken like any other ("allow").
        product: a layer with a forward of its own is left, too, for those who must know what the weight multiplies.
    Raises:
        ValueError: as :func:`find_layers`; a named layer that must be left, with the reason; no layer that may be
            exchanged.
    """
    names = None if names is None else list(names)
    layers = find_layers(model, names)
    reasons = reasons_to_leave(model, layers, tied=tied, product=product)
    chosen = {name: layer for name, layer in layers.items() if name not in reasons}
    if reasons and (names is not None or not chosen):
        raise ValueError("; ".join(f"layer {name!r}: {reason}" for name, reason in reasons.items()))
    return chosen, reasons


def reasons_to_leave(
    model: nn.Module, layers: Mapping[str, Layer], *, tied: str = "refuse", product: bool = False
) -> dict[str, str]:
    """Return name → reason of those of ``layers`` whose weight may not be exchanged, as :func:`choose_layers` has it.

    With ``tied="untie"`` a tied layer first gets a weight of its own, in place.
    """
    held = None if tied == "allow" else _Memory(model)
    reasons = {}
    for name, layer in layers.items():
        reason = unfit(layer, product=product)
        other = None if reason is not None or held is None else held.elsewhere(name, layer)
        if other is not None and tied == "untie":
            layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=layer.weight.requires_grad)
        elif other is not None:
            reason = f"its weight is tied to {other}"
        if reason is not None:
            reasons[name] = reason
    return reasons


class _Memory:
    """Who holds which bytes: parameters, buffers and plain tensors of all modules."""

    def __init__(self, model: nn.Module) -> None:
        self.holders = list(self._all(model))

    @staticmethod
    def _all(model: nn.Module) -> Iterator[tuple[nn.Module, str, tuple[int, int, int]]]:
        for path, module in model.named_modules():
            for held in (module._parameters, module._buffers, vars(module)):
                for key, value in held.items():
                    found = place(value) if isinstance(value, Tensor) else None
                    if found is not None:
                        yield module, f"{path}.{key}" if path else key, found

    def elsewhere(self, name: str, layer: Layer) -> str | None:
        """Return the path of another tensor that shares memory with the layer's weight."""
        base, start, end = place(layer.weight) or (0, 0, 0)
        whole = name.rpartition(".")[0]  # the attention or the experts of which the layer is a view
        for module, path, (other, first, last) in self.holders:
            own = module is layer or path == whole or (is_attention(module) and path.rpartition(".")[0] == whole)
            if not own and other == base and first < end and start < last:
                return path
        return None


def place(tensor: Tensor) -> tuple[int, int, int] | None:
    """Return the storage and the first and last byte (exclusive) of a tensor with data."""
    if tensor.is_meta or tensor.layout != torch.strided or not tensor.numel():
        return None
    if isinstance(tensor, _EMPTY) or type(tensor.data) is not Tensor:
        return None
    size = tensor.element_size()
    span = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    start = int(tensor.storage_offset()) * size
    return tensor.untyped_storage().data_ptr(), start, start + (int(span) + 1) * size


def copy_model(model: nn.Module) -> nn.Module:
    """Return a deep copy in which tensors share memory as they do in ``model``.

    ``copy.deepcopy`` refuses a model that holds computed tensors (pruning's masks), and gives each of two tied views
    a memory of its own.
    """
    memo: dict[int, object] = {}
    storages: dict[int, dict[int, Tensor]] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers, vars(module)):
            for value in held.values():
                if not isinstance(value, Tensor):
                    continue
                if not value.is_leaf:
                    memo[id(value)] = value.detach().clone()
                elif place(value) is not None:
                    storages.setdefault(value.untyped_storage().data_ptr(), {})[id(value)] = value
    for tensors in storages.values():
        if len(tensors) > 1:
            memory = next(iter(tensors.values())).untyped_storage().clone()
            memo |= {key: _view(tensor, memory) for key, tensor in tensors.items()}
    return copy.deepcopy(model, memo)


def _view(tensor: Tensor, memory: torch.UntypedStorage) -> Tensor:
    """Return what ``tensor`` is, in another memory of the same size."""
    new = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    new.set_(memory, tensor.storage_offset(), tensor.shape, tensor.stride())
    return nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
