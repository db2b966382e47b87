"""Light augmentation of images: a random shift by whole pixels."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mlcomp.checks import check_values, check_whole
from mlcomp.context import isolated


@isolated
def random_shift(
    images: Float[Tensor, "n c h w"], generator: torch.Generator, *, pixels: int = 2
) -> Float[Tensor, "n c h w"]:
    """Return each image moved by up to ``pixels`` in both directions, zeros coming in at the border."""
    check_values("images", images)
    if images.ndim != 4:
        raise ValueError(f"images must be (n, c, h, w), got shape {tuple(images.shape)}")
    check_whole("pixels", pixels, 0)
    n, _, h, w = images.shape
    padded = F.pad(images, (pixels,) * 4)
    down, right = torch.randint(2 * pixels + 1, (2, n, 1), generator=generator, device="cpu").to(images.device)
    rows = (torch.arange(h, device=images.device) + down)[:, None, :, None]
    columns = (torch.arange(w, device=images.device) + right)[:, None, None, :]
    channels = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    samples = torch.arange(n, device=images.device)[:, None, None, None]
    return padded[samples, channels, rows, columns]
