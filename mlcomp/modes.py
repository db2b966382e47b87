"""What whoever runs a model minds: where it lies, and that every module keeps the mode in which it was."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def home(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter; the CPU where it has none."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


@contextmanager
def keeping_modes(model: nn.Module) -> Iterator[None]:
    """Give every module of ``model`` its own mode back, also after an error: a frozen BatchNorm stays frozen."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put ``model`` into eval mode without gradients for a while."""
    with keeping_modes(model), torch.no_grad():
        model.eval()
        yield
