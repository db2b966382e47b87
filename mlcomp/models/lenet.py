"""LeNet-300-100, on which papers about sparse training begin: 784 → 300 → 100 → 10, 266 610 parameters.

Source: LeCun, Bottou, Bengio, Haffner 1998 (the network); Frankle & Carbin 2019, arXiv:1803.03635, figure 2.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mlcomp.checks import check_choice
from mlcomp.context import isolated

STARTS: dict[str, Callable[[Tensor], Tensor]] = {
    "glorot": nn.init.xavier_normal_,
    "kaiming": lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"),
}


@isolated
def lenet_300_100(*, start: str = "glorot", seed: int = 0) -> nn.Sequential:
    """Return the untrained network: (n, 1, 28, 28) pixels in [0, 1] → (n, 10) logits.

    Args:
        start: of the weights, "glorot" (normal, as in the paper on lottery tickets) or "kaiming" (normal, for ReLU).
            Biases start at zero.
        seed: of the start; the global random state is left alone.
    """
    check_choice("start", start, STARTS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
        )
        for layer in net:
            if isinstance(layer, nn.Linear):
                STARTS[start](layer.weight.data)
                nn.init.zeros_(layer.bias)
    return net
