"""The weights that come with the package, and a seeded start for training anew."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file
from torch import nn

WEIGHTS = Path(__file__).parent / "weights"

Network = TypeVar("Network", bound=nn.Module)


def build(network: Callable[[], Network], name: str, *, pretrained: bool, seed: int) -> Network:
    """Return ``network()`` in eval mode with the committed weights, or as initialized from ``seed``.

    The global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network()
    if pretrained:
        model.load_state_dict(load_file(WEIGHTS / f"{name}.safetensors"))
    return model.eval()
