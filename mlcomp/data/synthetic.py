"""A synthetic layer with the statistics that make layer-wise compression interesting."""

import torch
from jaxtyping import Float
from torch import Tensor


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
    double = {"generator": g, "dtype": torch.float64}
    weight = torch.randn(out_features, in_features, **double) / in_features**0.5
    rotation, _ = torch.linalg.qr(torch.randn(in_features, in_features, **double))
    spectrum = torch.arange(1, in_features + 1, dtype=torch.float64) ** (-alpha)
    spectrum = spectrum * in_features / spectrum.sum()
    scale = torch.exp(channel_sigma * torch.randn(in_features, **double))
    mixing = scale[:, None] * (rotation * spectrum.sqrt()) @ rotation.T
    calibration = mixing @ torch.randn(in_features, samples, **double)
    held_out = mixing @ torch.randn(in_features, samples, **double)
    return weight.float(), calibration.float(), held_out.float()
