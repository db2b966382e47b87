"""A network's weights as a mapping, for the pruners that rank over layers; zeros that stay zero; modules replaced.

This is the one place where layers are taken out of a model and others put back.

Notation: a mask is True where a weight is kept.
Source: Han et al. 2015, arXiv:1506.02626, section 3 (training of what is left).   Syllabus: 1.17
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from mlcomp.checks import check_finite
from mlcomp.context import isolated
from mlcomp.layerwise.fit import choose_layers, copy_model, place
from mlcomp.layerwise.matrix import Layer, find_layers, named_modules


@isolated
def layer_weights(model: nn.Module, layers: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Return name → weight of the linear and convolutional layers, in the order of ``model.named_modules()``.

    Args:
        model: not modified.
        layers: names of the layers; None: all of them. A weight that two layers share is listed for the first.
    Returns:
        The weights themselves, detached: not copies, so do not write into them.
    Raises:
        ValueError: an unknown name, a module of another kind, no layer at all.
    """
    chosen = find_layers(model, layers)
    found: dict[str, Tensor] = {}
    seen: set = set()
    for name, _ in named_modules(model):
        if name in chosen:
            weight = chosen[name].weight.detach()
            where = place(weight) or id(chosen[name].weight)
            if where not in seen:
                seen.add(where)
                found[name] = weight
    return found


@isolated
def with_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of ``model`` whose layers named in ``weights`` have these weights; all else is as it was.

    A weight that is tied stays tied: whoever holds it, too, has the new one.

    Raises:
        ValueError: an unknown name, a module that is no layer, a layer whose weight is no plain parameter, another
            shape, NaN or inf, different weights for layers that share one.
    """
    result = copy_model(model)
    if not weights:
        raise ValueError("weights names no layer")
    layers, _ = choose_layers(result, weights, tied="allow")
    for name, weight in weights.items():
        if weight.shape != layers[name].weight.shape:
            raise ValueError(
                f"layer {name!r} has weight {tuple(layers[name].weight.shape)}, got {tuple(weight.shape)}"
            )
        check_finite(f"weights[{name!r}]", weight)
    with torch.no_grad():
        for name, weight in weights.items():
            layers[name].weight.copy_(weight)
        for name, weight in weights.items():
            now = layers[name].weight
            if not torch.equal(now, weight.to(now)):
                raise ValueError(
                    f"layer {name!r} shares its weight with another, and the two were given different ones"
                )
    return result


@isolated
def network_sparsity(model: nn.Module, layers: Iterable[str] | None = None) -> float:
    """Return the share of zeros among the weights of the chosen layers (None: all linear and convolutional ones)."""
    weights = layer_weights(model, layers).values()
    return sum(int((w == 0).count_nonzero()) for w in weights) / sum(w.numel() for w in weights)


@isolated
def keep_zeros(model: nn.Module, layers: Iterable[str] | None = None) -> Callable[[int], None]:
    """Return a callback for ``train(…, after_step=…)`` that sets back to zero each weight that is zero *now*.

    Args:
        model: the model that will be trained; it may be moved to another dtype or device in between.
        layers: names of the layers to watch; None: all linear and convolutional ones.
    Returns:
        a function of the step's number. It writes into the model's weights, in place.
    Raises:
        ValueError: as :func:`find_layers`; a layer whose weight is no plain parameter, so that zeros written into it
            would be lost.
    Guarantee: after each step the watched weights are zero, whatever the optimizer keeps in its moments; all others
        move exactly as if the gradient of the zeros had been masked (for optimizers that act entry by entry).
    """
    names = list(find_layers(model, layers))
    watched, _ = choose_layers(model, names, tied="allow")
    zeros = {name: layer.weight.detach() == 0 for name, layer in watched.items()}

    def after_step(step: int) -> None:
        with torch.no_grad():
            # Looked up anew: a model that was moved may hold other tensors than before.
            for name, layer in find_layers(model, zeros).items():
                zeros[name] = zeros[name].to(layer.weight.device)
                layer.weight.masked_fill_(zeros[name], 0)

    return after_step


class Replacement(nn.Module):
    """A module that stands in the place of a linear or convolutional layer, or of an embedding, with another weight.

    Whoever reads ``weight``, ``bias`` or the sizes of the layer there finds them.

    Attributes:
        layer: the layer itself.
    """

    def __init__(self, layer: Layer | nn.Embedding) -> None:
        super().__init__()
        self.layer: Layer = cast(Layer, layer)  # only what stands for an embedding knows that it does

    @property
    def bias(self) -> Tensor | None:
        """The layer's bias."""
        return self.layer.bias

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "layer" or name.startswith("_"):
                raise
            return getattr(self.layer, name)


def replace_module(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Put ``module`` at ``name`` in ``model``, in place, and return the model (``module`` itself for "").

    A module that stands in the model under several names is replaced under each.
    """
    old = model.get_submodule(name)
    if old is model:
        return module
    for parent in list(model.modules()):
        for child, present in parent._modules.items():
            if present is old:
                setattr(parent, child, module)
    return model
