r"""GraSP: prune before training, so that the gradient loses as little as may be.

Notation: θ weights, g gradient and H Hessian of the loss by θ, T temperature. Removing the weight q changes
$g^\top g$ by $-2\,\theta_q (Hg)_q$ to first order, so the gradient's flow needs the weights of large
$\theta_q (Hg)_q$, and these stay.
Source: Wang, Zhang, Grosse 2020, arXiv:2002.07376, eq. (8) and algorithms 1, 2.   Syllabus: 3.04
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlcomp.checks import check_finite, check_positive, check_sparsity
from mlcomp.context import isolated_run
from mlcomp.layerwise.weights import layer_weights
from mlcomp.prune.at_initialization.snip import gradients, scoring_loss
from mlcomp.prune.importance.magnitude import prune_lowest


@isolated_run
def gradient_flow(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    temperature: float = 200.0,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    layers: Iterable[str] | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    r"""Return $\theta \odot Hg$ of each layer's weight on one batch: by how much it carries the gradient's flow.

    Args:
        model: run in training mode as a copy; its parameters, gradients and running statistics stay.
        inputs, labels: the one batch; ten a class is the paper's choice.
        temperature: T; the outputs are divided by it. At T = 1 a network that is sure of wrong classes has flat
            softmax outputs, and the second derivatives say little. The authors' code has 200.
        loss: ``loss(model(inputs) / T, labels)``, a scalar.
        layers: names of the layers; None: all linear and convolutional ones.
        seed: for dropout and its like; the global random state is left alone.
    Returns:
        name → scores in the weight's shape and dtype; a negative one says that the gradient grows without the weight.
    Raises:
        ValueError: no samples, lengths that differ, NaN or inf in the inputs, the loss or a derivative, no such
            layer, a temperature that is not positive.
    Cost: one forward pass, and two backward passes (the second through the first).
    """
    check_positive("temperature", temperature)

    def cooled(outputs: Tensor, labels: Tensor) -> Tensor:
        return loss(outputs / temperature, labels)

    with scoring_loss(model, inputs, labels, loss=cooled, layers=layers, seed=seed) as (value, weights):
        first = gradients(value, weights, create_graph=True)
        flow = torch.stack([(g.detach() * g).sum() for g in first.values()]).sum()
        parameters = list(weights.values())
        if flow.requires_grad:
            products = torch.autograd.grad(flow, parameters, materialize_grads=True)
        else:  # a loss that is linear in the weights has no second derivatives
            products = tuple(map(torch.zeros_like, parameters))
    for name, product in zip(weights, products, strict=True):
        check_finite(f"the Hessian's product of layer {name!r}", product)
    return {name: weight.detach() * hg for (name, weight), hg in zip(weights.items(), products, strict=True)}


@isolated_run
def grasp(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    sparsity: float,
    temperature: float = 200.0,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    layers: Iterable[str] | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return the weights of an untrained network, those set to zero that the gradient's flow misses least.

    Args:
        sparsity: share of zeros over the chosen layers together; the count is rounded half up.
        model, inputs, labels, temperature, loss, layers, seed: as in :func:`gradient_flow`.
    Returns:
        name → pruned weight; what is kept is unchanged. :func:`mlcomp.layerwise.with_weights` puts them into a copy.
    Raises:
        ValueError: sparsity outside [0, 1], and as in :func:`gradient_flow`.
    Guarantee: exactly the asked number of weights is removed over all layers; ties go by layer, then by index.
        Nothing keeps a layer from losing all its weights.
    Deviations: the authors' code draws new weights for the copy that it scores, so its masks belong to other weights
        than those that are trained, and adds up the gradients of several batches.
    """
    check_sparsity(sparsity)
    scores = gradient_flow(model, inputs, labels, temperature=temperature, loss=loss, layers=layers, seed=seed)
    weights = layer_weights(model, scores)
    return prune_lowest({name: weights[name] for name in scores}, scores, sparsity)
