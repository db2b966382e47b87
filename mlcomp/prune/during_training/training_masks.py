"""The masks of a network that is trained sparse: buffers of the model, so that a checkpoint holds them.

Notation: a mask is True where a weight is kept.
Source: Zhu & Gupta 2017, arXiv:1710.01878, section 3 (masks beside the weights).   Syllabus: 1.17, 3.04
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mlcomp.layerwise.fit import choose_layers
from mlcomp.layerwise.weights import layer_weights
from mlcomp.prune.pattern import smallest_mask

_BUFFER = "training_mask_{}"


class TrainingMasks:
    """The chosen layers' weights and masks, all True at first; both are the model's own tensors, changed in place.

    Attributes:
        weights: name → weight, detached.
        masks: name → boolean tensor of its shape.
    """

    def __init__(self, model: nn.Module, layers: Iterable[str] | None) -> None:
        self.model = model
        self.weights = layer_weights(model, layers)
        # Raises for a layer whose weight is no plain parameter.
        self._layers, _ = choose_layers(model, self.weights, tied="allow")
        self.masks: dict[str, Tensor] = {}
        for number, (name, weight) in enumerate(self.weights.items()):
            model.register_buffer(_BUFFER.format(number), torch.ones_like(weight, dtype=torch.bool))
            self.masks[name] = model.get_buffer(_BUFFER.format(number))

    def apply(self) -> None:
        """Set the weights that are not kept to zero."""
        for name, weight in self.weights.items():
            weight.masked_fill_(~self.masks[name], 0)

    def apply_to_gradients(self) -> None:
        """Set the gradients of weights that are not kept to zero, so that no moment of an optimizer sees them."""
        for name, layer in self._layers.items():
            if layer.weight.grad is not None:
                layer.weight.grad.masked_fill_(~self.masks[name], 0)

    def move(self, name: str, count: int, scores: Tensor, optimizer: Optimizer) -> None:
        """Drop the ``count`` kept weights of least magnitude, then keep as many others, those of the largest scores.

        Dropped weights are among the candidates. What is dropped or new is zero, and so are its entries in the
        optimizer's state: a new weight has no past.
        """
        weight, mask = self.weights[name], self.masks[name]
        shape = mask.shape
        size = weight.abs().masked_fill(~mask, torch.inf)
        dropped = smallest_mask(size.reshape(1, -1), count).reshape(shape)
        stays = mask & ~dropped
        wanted = (-scores).masked_fill(stays, torch.inf)
        grown = smallest_mask(wanted.reshape(1, -1), count).reshape(shape)
        changed = dropped | grown
        mask.copy_(stays | grown)
        weight.masked_fill_(changed, 0)
        for moment in optimizer.state[self._layers[name].weight].values():
            if isinstance(moment, Tensor) and moment.shape == shape:
                moment.masked_fill_(changed, 0)

    def gradient(self, name: str) -> Tensor:
        """Return the gradient of a layer's weight, of all its entries, kept or not."""
        gradient = self._layers[name].weight.grad
        if gradient is None:
            raise ValueError(f"layer {name!r} has no part in the loss: leave it out through layers=")
        return gradient

    def remove(self) -> None:
        """Take the buffers out of the model again."""
        for number in range(len(self.masks)):
            delattr(self.model, _BUFFER.format(number))
