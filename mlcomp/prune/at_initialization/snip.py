r"""SNIP: prune before training, by how much the loss would feel the loss of each connection.

Notation: w weights, $c \in \{0, 1\}^m$ their switches, $g = \partial L/\partial w$ on one batch; the connection
sensitivity is $s_j = |\partial L(c \odot w)/\partial c_j|$ at c = 1, which is $|g_j w_j|$ (paper: divided by the
sum, which changes no order). The largest stay.
Source: Lee, Ajanthan, Torr 2019, arXiv:1810.02340, eq. (4)–(6) and algorithm 1.   Syllabus: 1.17
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlcomp.checks import check_finite, check_sparsity
from mlcomp.context import isolated_run
from mlcomp.layerwise.attention import split_attention
from mlcomp.layerwise.fit import choose_layers, copy_model
from mlcomp.layerwise.weights import layer_weights
from mlcomp.modes import home
from mlcomp.prune.importance.magnitude import prune_lowest
from mlcomp.prune.importance.taylor import weight_gradients


@isolated_run
def connection_sensitivity(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    layers: Iterable[str] | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    r"""Return $|g \odot w|$ of each layer's weight on one batch.

    Args:
        model: run in training mode (BatchNorm normalizes by the batch: before training it knows nothing else), as a
            copy: parameters, gradients and running statistics of ``model`` stay.
        inputs, labels: the one batch; a hundred or so are enough; ten a class is a common choice.
        loss: ``loss(model(inputs), labels)``, a scalar.
        layers: names of the layers; None: all linear and convolutional ones.
        seed: for dropout and its like; the global random state is left alone.
    Returns:
        name → scores in the weight's shape and dtype.
    Raises:
        ValueError: no samples, lengths that differ, NaN or inf in the inputs, the loss or a gradient, no such layer.
    """
    weights, gradients = batch_gradients(model, inputs, labels, loss=loss, layers=layers, seed=seed)
    return {name: (gradients[name] * weight.detach()).abs() for name, weight in weights.items()}


def batch_gradients(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    loss: Callable[[Tensor, Tensor], Tensor],
    layers: Iterable[str] | None,
    seed: int,
    create_graph: bool = False,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return name → weight of a copy of ``model`` in training mode, and the gradient of its loss by it on one batch.

    With ``create_graph`` the gradients can be differentiated again. Arguments and errors as in
    :func:`connection_sensitivity`.
    """
    if len(inputs) != len(labels) or len(inputs) == 0:
        raise ValueError(f"inputs and labels must have the same length ≥ 1, got {len(inputs)} and {len(labels)}")
    if inputs.is_floating_point():
        check_finite("inputs", inputs)
    student = split_attention(copy_model(model).train())
    names = list(layer_weights(student, layers))
    chosen, _ = choose_layers(student, names, tied="allow")
    device = home(student)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        x, y = inputs.to(device), labels.to(device)
        gradients = weight_gradients(student, names, x, y, loss, create_graph=create_graph)
    return {name: layer.weight for name, layer in chosen.items()}, gradients


@isolated_run
def snip(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    sparsity: float,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    layers: Iterable[str] | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return the weights of an untrained network with the least sensitive connections set to zero.

    Args:
        sparsity: share of zeros over the chosen layers together; the count is rounded half up.
        model, inputs, labels, loss, layers, seed: as in :func:`connection_sensitivity`.
    Returns:
        name → pruned weight; what is kept is unchanged. :func:`mlcomp.layerwise.with_weights` puts them into a copy.
    Raises:
        ValueError: sparsity outside [0, 1], and as in :func:`connection_sensitivity`.
    Guarantee: exactly the asked number of weights is removed over all layers; ties go by layer, then by index. No
        kept connection is less sensitive than a removed one. Nothing keeps a layer from losing all its weights.
    Cost: one forward and one backward pass.
    """
    check_sparsity(sparsity)
    scores = connection_sensitivity(model, inputs, labels, loss=loss, layers=layers, seed=seed)
    weights = layer_weights(model, scores)
    return prune_lowest({name: weights[name] for name in scores}, scores, sparsity)
