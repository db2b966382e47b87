r"""Taylor importance: how much the loss would change without a weight, or without a channel, to first order.

Notation: C the loss; $h$ a weight or an output; removing it changes C by about $-\frac{\partial C}{\partial h}h$, so

$$\Theta_{TE}(h) = \Big|\frac{\partial C}{\partial h}\,h\Big| \quad (7), \qquad
\Theta_{TE}(z_l^{(k)}) = \Big|\frac1M\sum_m \frac{\partial C}{\partial z_{l,m}^{(k)}}\,z_{l,m}^{(k)}\Big| \quad (8)$$

for channel k of layer l with M positions: of one example; then the mean over examples. Scores of different layers are
compared after each layer's were divided by their ℓ2 norm.
Source: Molchanov, Tyree, Karras, Aila, Kautz 2017, arXiv:1611.06440, eq. (7)–(8) and section 2.2.
Syllabus: 3.09
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlcomp.checks import check_choice, check_finite, check_whole
from mlcomp.context import isolated_run
from mlcomp.layerwise.attention import split_attention
from mlcomp.layerwise.fit import choose_layers, copy_model
from mlcomp.layerwise.matrix import TurnedLinear
from mlcomp.layerwise.running import hooked
from mlcomp.layerwise.weights import layer_weights
from mlcomp.modes import evaluating, home, keeping_modes

Loss = Callable[[Tensor, Tensor], Tensor]

# What becomes of the activations a and gradients g of one example, (positions,) for each channel.
CRITERIA: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "taylor": lambda a, g: (a * g).mean(-1).abs(),
    "taylor_inside": lambda a, g: (a * g).abs().mean(-1),
    "gradient": lambda a, g: g.abs().mean(-1),
    "activation": lambda a, g: a.abs().mean(-1),
}


@isolated_run
def channel_importance(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    layers: Iterable[str],
    *,
    criterion: str = "taylor",
    normalize: bool = True,
    loss: Loss = F.cross_entropy,
    batch_size: int = 256,
) -> dict[str, Tensor]:
    """Return a score for each output channel of the named modules.

    Args:
        model: run in eval mode, so that no example feels another; not modified.
        inputs, labels: the examples over which scores are averaged.
        layers: names of modules, any whose output is a tensor: the channels are those that leave it, before or after
            BatchNorm or activation as you name it. They are dimension 1; the last one of a linear layer or LayerNorm.
        criterion: "taylor", eq. (8); "gradient" and "activation", the mean size of either factor alone; and
            "taylor_inside", eq. (8) with the absolute value taken at each position, where nothing can cancel.
        normalize: divide the scores of each layer by their ℓ2 norm.
        loss: ``loss(model(inputs), labels)``, the mean over the examples.
        batch_size: examples at a time.
    Returns:
        name → (channels,), float64.
    Raises:
        ValueError: an unknown criterion or module; no examples, NaN or inf in them or the loss; a module that does
            not reach the loss, is called more than once, or returns no tensor with channels.
    Guarantee: the scores do not depend on ``batch_size``.
    Cost: one forward and backward pass over the examples.
    """
    check_choice("criterion", criterion, CRITERIA)
    watched = _watched(model, layers)
    sums: dict[str, Any] = dict.fromkeys(watched, 0.0)
    with keeping_modes(model), torch.enable_grad():
        model.eval()
        for x, y in _batches(model, inputs, labels, batch_size):
            outputs, value = _outputs(model, watched, x, y, loss)
            # The mean over the batch, so that each example's own gradient is this many times what comes back.
            gradients = torch.autograd.grad(value * len(x), list(outputs.values()), allow_unused=True)
            for (name, output), gradient in zip(outputs.items(), gradients, strict=True):
                if gradient is None:
                    raise ValueError(f"module {name!r} has no part in the loss: leave it out of layers")
                a, g = (_by_channel(watched[name], part.detach().double()) for part in (output, gradient))
                sums[name] = sums[name] + CRITERIA[criterion](a, g).sum(0)
    scores = {name: total / len(inputs) for name, total in sums.items()}
    return {name: _unit(score) if normalize else score for name, score in scores.items()}


@isolated_run
def channel_loss_changes(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    channels: Mapping[str, Iterable[int]],
    *,
    loss: Loss = F.cross_entropy,
    batch_size: int = 1024,
) -> dict[str, Tensor]:
    """Return the loss without each of some channels less the loss with all: what the scores estimate.

    Args:
        model, inputs, labels, loss: as for :func:`channel_importance`.
        channels: name of a module → numbers of the channels of its output to set to zero, one at a time.
    Returns:
        name → (as many,), float64, in the order of ``channels``; negative where the loss falls.
    Raises:
        ValueError: as :func:`channel_importance`; a channel that is not there.
    Cost: a forward pass over the examples for each channel.
    """
    numbers = {name: list(chosen) for name, chosen in channels.items()}
    watched = _watched(model, numbers)
    batches = list(_batches(model, inputs, labels, batch_size))
    zero: list[int] = []

    def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        dim = _channel_dim(module)
        if not 0 <= zero[0] < output.shape[dim]:
            raise ValueError(f"a channel is a whole number from 0 to {output.shape[dim] - 1}, got {zero[0]}")
        output = output.clone()
        output.select(dim, zero[0]).zero_()
        return output

    def mean_loss() -> float:
        values = [float(loss(model(x), y).double()) * len(x) for x, y in batches]
        return sum(values) / len(inputs)

    changes: dict[str, Tensor] = {}
    with evaluating(model):
        whole = mean_loss()
        for name, module in watched.items():
            found = []
            for number in numbers[name]:
                zero[:] = [number]
                with hooked([module.register_forward_hook(hook)]):
                    found.append(mean_loss() - whole)
            changes[name] = torch.tensor(found, dtype=torch.float64, device="cpu")
    return changes


@isolated_run
def weight_importance(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    criterion: str = "taylor",
    loss: Loss = F.cross_entropy,
    layers: Iterable[str] | None = None,
    batch_size: int = 1024,
) -> dict[str, Tensor]:
    """Return a score for each single weight: eq. (7) for h = w.

    Args:
        model, inputs, labels, loss: as for :func:`channel_importance`. Before training, and by the batch's own
            statistics, the same product is SNIP's score: :func:`mlcomp.prune.connection_sensitivity`.
        criterion: "taylor" |g·w|, "gradient" |g|, "magnitude" |w|; g is the gradient of the mean loss.
        layers: names of the layers; None: all linear and convolutional ones.
    Returns:
        name → scores in the weight's shape and dtype.
    Raises:
        ValueError: an unknown criterion or layer; no examples, NaN or inf in them, the loss or a gradient.
    """
    check_choice("criterion", criterion, ("taylor", "gradient", "magnitude"))
    student = split_attention(copy_model(model).eval())
    names = list(layer_weights(student, layers))
    gradients: dict[str, Any] = dict.fromkeys(names, 0.0)
    for x, y in _batches(student, inputs, labels, batch_size):
        for name, gradient in weight_gradients(student, names, x, y, loss).items():
            gradients[name] = gradients[name] + gradient * (len(x) / len(inputs))
    weights = layer_weights(student, names)
    factors = {"taylor": lambda w, g: w * g, "gradient": lambda w, g: g, "magnitude": lambda w, g: w}
    return {name: factors[criterion](weights[name], gradients[name]).abs() for name in names}


def weight_gradients(
    model: nn.Module,
    names: Iterable[str],
    inputs: Tensor,
    labels: Tensor,
    loss: Loss,
    *,
    create_graph: bool = False,
) -> dict[str, Tensor]:
    """Return the gradient of the loss by the weight of each named layer, in the mode that ``model`` has.

    With ``create_graph`` it can be differentiated again.

    Raises:
        ValueError: a loss or gradient that is NaN or infinite; a layer that has no part in the loss, or whose weight
            is no plain parameter.
    """
    chosen, _ = choose_layers(model, names, tied="allow")
    parameters = [layer.weight.requires_grad_() for layer in chosen.values()]
    with torch.enable_grad():
        value = loss(model(inputs), labels)
        check_finite("the loss", value.detach())
        gradients = torch.autograd.grad(value, parameters, allow_unused=True, create_graph=create_graph)
    found = {}
    for name, gradient in zip(chosen, gradients, strict=True):
        if gradient is None:
            raise ValueError(f"layer {name!r} has no part in the loss: leave it out through layers=")
        check_finite(f"the gradient of layer {name!r}", gradient.detach())
        found[name] = gradient
    return found


def _watched(model: nn.Module, layers: Iterable[str]) -> dict[str, nn.Module]:
    modules, names = dict(model.named_modules()), list(layers)
    for name in names:
        if name not in modules:
            raise ValueError(f"the model has no module {name!r}")
    if not names:
        raise ValueError("layers is empty: name the modules whose channels are scored")
    return {name: modules[name] for name in names}


def _batches(model: nn.Module, inputs: Tensor, labels: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pairs of batches on the device of the model."""
    check_whole("batch_size", batch_size, 1)
    if len(inputs) != len(labels) or len(inputs) == 0:
        raise ValueError(f"inputs and labels must have the same length ≥ 1, got {len(inputs)} and {len(labels)}")
    if inputs.is_floating_point():
        check_finite("inputs", inputs)
    device = home(model)
    for x, y in zip(inputs.split(batch_size), labels.split(batch_size), strict=True):
        yield x.to(device), y.to(device)


def _outputs(
    model: nn.Module, watched: Mapping[str, nn.Module], x: Tensor, y: Tensor, loss: Loss
) -> tuple[dict[str, Tensor], Tensor]:
    """Return what each watched module gave, in a graph that ends in the loss."""
    outputs: dict[str, Tensor] = {}

    def hook(name: str) -> Callable:
        def after(module: nn.Module, args: tuple, output: Any) -> Tensor:
            if name in outputs:
                raise ValueError(f"module {name!r} is called more than once, so its channels have several outputs")
            if not isinstance(output, Tensor) or output.ndim < 2:
                raise ValueError(f"module {name!r} returns no tensor with examples and channels")
            # Where nothing before it is trained, the output starts the graph; an in-place operation after it
            # would overwrite what is looked at here.
            outputs[name] = output if output.requires_grad else output.detach().requires_grad_()
            return outputs[name].clone()

        return after

    with hooked([module.register_forward_hook(hook(name)) for name, module in watched.items()]):
        value = loss(model(x), y)
    check_finite("the loss", value.detach())
    silent = [name for name in watched if name not in outputs]
    if silent:
        raise ValueError(f"the model did not call {silent} on these inputs")
    return outputs, value


def _channel_dim(module: nn.Module) -> int:
    return -1 if isinstance(module, nn.Linear | nn.LayerNorm | nn.RMSNorm | TurnedLinear) else 1


def _by_channel(module: nn.Module, x: Tensor) -> Tensor:
    """Return (examples, channels, positions)."""
    return x.movedim(_channel_dim(module), 1).reshape(len(x), x.shape[_channel_dim(module)], -1)


def _unit(scores: Tensor) -> Tensor:
    norm = scores.norm()
    return scores / norm if norm > 0 else scores
