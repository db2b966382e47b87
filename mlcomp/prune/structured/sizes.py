"""Sizes that modules and configurations state beside their weights, after channels were removed."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from mlcomp.layerwise.matrix import TurnedLinear
from mlcomp.prune.structured.dependency_graph import Group

Removed = Mapping[Group, tuple[int, ...]]

# What an attention module or a configuration calls its number of heads, or heads times their size.
HEADS = ("num_heads", "n_heads", "num_attention_heads", "num_key_value_heads", "all_head_size", "split_size")
# What they call the width of the hidden layer of an MLP, and of the stream between blocks.
WIDTHS = ("intermediate_size", "n_inner")


def rescale_norms(model: nn.Module, removed: Removed) -> None:
    """Have each RMSNorm that averages over removed channels give the others what it gave with these at zero."""
    for group, numbers in removed.items():
        for name in group.averaged if numbers else ():
            module: Any = model.get_submodule(name)
            key = next((k for k in ("variance_epsilon", "eps") if isinstance(getattr(module, k, None), float)), None)
            if type(module).__name__.endswith("RMSNorm") and key and getattr(module, "weight", None) is not None:
                share = group.channels / (group.channels - len(numbers))
                module.weight.data.mul_(share**0.5)
                setattr(module, key, getattr(module, key) * share)


def remember_sizes(model: nn.Module, removed: Removed) -> None:
    """Correct the sizes that modules state, in place; those of a configuration where it has one number for all."""
    for module in model.modules():
        for key, size in _stated(module).items():
            setattr(module, key, size)
    for group, numbers in removed.items():
        for parent in {m.name.rpartition(".")[0] for m in group.members if m.axis == "out"}:
            _scale(model.get_submodule(parent), group, len(numbers))
    config: Any = getattr(model, "config", None)
    if config is not None and hasattr(config, "num_hidden_layers"):
        _configure(config, removed)


def _stated(module: nn.Module) -> dict[str, Any]:
    """Return the sizes that a module of torch, or a Conv1D of transformers, keeps beside its weight."""
    weight = module._parameters.get("weight")
    if isinstance(module, _NormBase):
        held = weight if weight is not None else module.running_mean
        return {} if held is None else {"num_features": len(held)}
    if weight is None:
        return {}
    if isinstance(module, nn.Linear):
        return {"out_features": weight.shape[0], "in_features": weight.shape[1]}
    if isinstance(module, _ConvNd) and module.groups == 1:
        turned = int(module.transposed)
        return {"out_channels": weight.shape[turned], "in_channels": weight.shape[1 - turned]}
    if isinstance(module, TurnedLinear):
        return {"nf": weight.shape[1], "nx": weight.shape[0]}
    if isinstance(module, nn.Embedding):
        return {"num_embeddings": weight.shape[0], "embedding_dim": weight.shape[1]}
    if isinstance(module, nn.GroupNorm):
        return {"num_channels": len(weight)}
    if isinstance(module, nn.LayerNorm | nn.RMSNorm) and weight.ndim == 1:
        return {"normalized_shape": tuple(weight.shape)}
    return {"num_parameters": len(weight)} if isinstance(module, nn.PReLU) else {}


def _scale(module: nn.Module, group: Group, gone: int) -> None:
    """Correct whole numbers that count heads, or channels of a hidden layer, in the module around the layers."""
    heads = any(len(m.indices[0]) > 1 for m in group.members if m.axis == "out")
    for key in HEADS if heads else WIDTHS:
        size = getattr(module, key, None)
        if isinstance(size, int) and size % group.channels == 0:
            setattr(module, key, size // group.channels * (group.channels - gone))


def _configure(config: Any, removed: Removed) -> None:
    """Write into a transformers configuration what all layers have in common."""
    kinds: dict[tuple[int, bool, bool], list[int]] = {}
    for group, numbers in removed.items():
        heads = any(len(m.indices[0]) > 1 for m in group.members if m.axis == "out")
        kinds.setdefault((group.channels, heads, bool(group.averaged)), []).append(len(numbers))
    for (channels, heads, stream), gone in kinds.items():
        if len(set(gone)) > 1 or (len(gone) < config.num_hidden_layers and not stream):
            continue
        left = channels - gone[0]
        if stream and getattr(config, "hidden_size", None) == channels:
            if hasattr(config, "num_attention_heads"):
                config.head_dim = getattr(config, "head_dim", None) or channels // config.num_attention_heads
            config.hidden_size = left
            if isinstance(getattr(config, "rms_norm_eps", None), float):
                config.rms_norm_eps *= channels / left  # see rescale_norms
        if heads and getattr(config, "head_dim", None) is None:
            continue  # fewer heads would be read as larger ones
        keys = ("num_attention_heads", "num_key_value_heads") if heads else WIDTHS
        for key in keys if not stream else ():
            size = getattr(config, key, None)
            if isinstance(size, int) and size % channels == 0:
                setattr(config, key, size // channels * left)
