"""A network's weights as a mapping, for the pruners that rank over layers; and zeros that stay zero in training.

Notation: a mask is True where a weight is kept.
Source: Han et al. 2015, arXiv:1506.02626, section 3 (training of what is left).   Syllabus: 1.17
"""

import copy
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from mlcomp.checks import check_finite
from mlcomp.context import isolated
from mlcomp.layerwise.matrix import find_layers


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
    seen: set[int] = set()
    for name, _ in model.named_modules():
        if name in chosen and id(chosen[name].weight) not in seen:
            seen.add(id(chosen[name].weight))
            found[name] = chosen[name].weight.detach()
    return found


@isolated
def with_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of ``model`` whose layers named in ``weights`` have these weights; all else is as it was.

    Raises:
        ValueError: an unknown name, a module that is no layer, another shape, NaN or inf.
    """
    result = copy.deepcopy(model)
    layers = find_layers(result, weights)
    for name, weight in weights.items():
        parameter = layers[name].weight
        if weight.shape != parameter.shape:
            raise ValueError(f"layer {name!r} has weight {tuple(parameter.shape)}, got {tuple(weight.shape)}")
        check_finite(f"weights[{name!r}]", weight)
        with torch.no_grad():
            parameter.copy_(weight)
    return result


@isolated
def network_sparsity(model: nn.Module, layers: Iterable[str] | None = None) -> float:
    """Return the share of zeros among the weights of the chosen layers (None: all linear and convolutional ones)."""
    weights = layer_weights(model, layers).values()
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


@isolated
def keep_zeros(model: nn.Module, layers: Iterable[str] | None = None) -> Callable[[int], None]:
    """Return a callback for ``train(…, after_step=…)`` that sets back to zero each weight that is zero *now*.

    Args:
        model: the model that will be trained.
        layers: names of the layers to watch; None: all linear and convolutional ones.
    Returns:
        a function of the step's number. It writes into the model's weights, in place.
    Guarantee: after each step the watched weights are zero, whatever the optimizer keeps in its moments; all others
        move exactly as if the gradient of the zeros had been masked (for optimizers that act entry by entry).
    """
    removed = [(weight, weight == 0) for weight in layer_weights(model, layers).values()]

    def after_step(step: int) -> None:
        with torch.no_grad():
            for weight, zeros in removed:
                weight.masked_fill_(zeros, 0)

    return after_step


def replace_module(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Put ``module`` at ``name`` in ``model``, in place, and return the model (``module`` itself for "")."""
    if not name:
        return module
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
    return model
