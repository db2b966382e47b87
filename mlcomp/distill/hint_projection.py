r"""The projection between a student's layer and a teacher's: a linear map of channels, trained along and thrown away.

Source: Romero et al. 2015, arXiv:1412.6550, section 2.2 (the regressor).   Syllabus: 3.14
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mlcomp.checks import check_values
from mlcomp.context import isolated


@isolated
def hint_projection(
    features: Float[Tensor, "n *shape"], hint: Float[Tensor, "n *other"], *, seed: int = 0
) -> nn.Linear | nn.Conv2d:
    """Return an untrained projection of a student's features to the shape of a teacher's hint.

    Args:
        features: of the student: (n, channels), (n, length, channels) or images (n, channels, height, width).
        hint: of the teacher, for the same inputs: as many dimensions, any number of channels, all other sizes the
            same.
        seed: of its initialization; the global random state is left alone.
    Returns:
        a linear layer over the last dimension, for images a 1×1 convolution.
    Raises:
        ValueError: other numbers of dimensions, or sizes that no projection of channels could match.
    """
    for name, x in (("features", features), ("hint", hint)):
        check_values(name, x)
        if x.ndim not in (2, 3, 4) or not x.numel():
            raise ValueError(
                f"{name} must be (n, channels), (n, length, channels) or (n, channels, height, width) and hold "
                f"something, got {tuple(x.shape)}"
            )
    channel = 1 if features.ndim == 4 else features.ndim - 1
    sizes = [(*x.shape[:channel], *x.shape[channel + 1 :]) for x in (features, hint)]
    if features.ndim != hint.ndim or sizes[0] != sizes[1]:
        raise ValueError(
            f"features {tuple(features.shape)} and hint {tuple(hint.shape)} must be alike but for the channels: "
            "choose layers whose outputs have the same height and width, or length"
        )
    given, wanted = features.shape[channel], hint.shape[channel]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Conv2d(given, wanted, 1) if channel == 1 and features.ndim == 4 else nn.Linear(given, wanted)
