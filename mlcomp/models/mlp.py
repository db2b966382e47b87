"""The course's multilayer perceptron for 28×28 digits: 784 → 256 → 128 → 10, 235 146 parameters."""

from torch import nn

from mlcomp.context import isolated
from mlcomp.models.pretrained import build


@isolated
def mlp(*, pretrained: bool = True, seed: int = 0) -> nn.Sequential:
    """Return the network in eval mode: (n, 1, 28, 28) pixels in [0, 1] → (n, 10) logits.

    Args:
        pretrained: load the committed weights (see the model card); else initialize from ``seed``.
        seed: of the initialization; the global random state is left alone.
    """
    return build(_network, "mlp", pretrained=pretrained, seed=seed)


def _network() -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)
    )
