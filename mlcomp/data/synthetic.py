"""A synthetic layer with the statistics that make layer-wise compression interesting."""

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.context import isolated


@isolated
def make_layer(
    out_features: int,
    in_features: int,
    samples: int,
    *,
    seed: int = 0,
    alpha: float = 1.0,
    channel_sigma: float = 0.5,
) -> tuple[Float[Tensor, "out inp"], Float[Tensor, "inp samples"], Float[Tensor, "inp samples"]]:
    """Return a weight, calibration inputs and held-out inputs, all float32.

    The weight is N(0, 1/inp); the inputs have a power-law spectrum (exponent ``alpha``) and log-normal channel
    scales (``channel_sigma``), so that they are correlated and some channels matter more than others.
    """
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    weight = normal(out_features, in_features) / in_features**0.5
    rotation, _ = torch.linalg.qr(normal(in_features, in_features))
    spectrum = torch.arange(1, in_features + 1, dtype=torch.float64) ** (-alpha)
    spectrum = spectrum * in_features / spectrum.sum()
    scale = torch.exp(channel_sigma * normal(in_features))
    mixing = scale[:, None] * (rotation * spectrum.sqrt()) @ rotation.T
    calibration = mixing @ normal(in_features, samples)
    held_out = mixing @ normal(in_features, samples)
    return weight.float(), calibration.float(), held_out.float()
