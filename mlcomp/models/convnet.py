"""The course's convolutional network for 28×28 digits: a small ResNet, 129 210 parameters.

It holds one of everything that a compression method must handle: a stem with one input channel, residual blocks with
and without a 1×1 shortcut, strides, BatchNorm after each convolution (ready to be folded), a depthwise and a
pointwise convolution, a grouped convolution, and a linear head.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from mlcomp.context import isolated
from mlcomp.models.pretrained import build


@isolated
def convnet(*, pretrained: bool = True, seed: int = 0) -> "ConvNet":
    """Return the network in eval mode: (n, 1, 28, 28) pixels in [0, 1] → (n, 10) logits.

    Args:
        pretrained: load the committed weights (see the model card); else initialize from ``seed``.
        seed: of the initialization; the global random state is left alone.
    """
    return build(ConvNet, "convnet", pretrained=pretrained, seed=seed)


class ConvNet(nn.Module):
    """Stem (16 channels), residual blocks (32 at 14×14, 64 and 64 at 7×7), a depthwise-separable block (128)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBN(1, 16, 3)
        self.block1 = ResidualBlock(16, 32, stride=2)
        self.block2 = ResidualBlock(32, 64, stride=2)
        self.block3 = ResidualBlock(64, 64, groups=4)
        self.depthwise = ConvBN(64, 64, 3, groups=64)
        self.pointwise = ConvBN(64, 128, 1)
        self.head = nn.Linear(128, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (n, 10) of ``images`` (n, 1, 28, 28)."""
        x = F.relu(self.stem(images))
        x = self.block3(self.block2(self.block1(x)))
        x = F.relu(self.pointwise(F.relu(self.depthwise(x))))
        return self.head(x.mean((2, 3)))


class ConvBN(nn.Module):
    """A convolution without bias, then BatchNorm; "same" padding up to the stride."""

    def __init__(self, inp: int, out: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inp, out, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        """Return bn(conv(x))."""
        return self.bn(self.conv(x))


class ResidualBlock(nn.Module):
    """relu(shortcut(x) + conv2(relu(conv1(x)))); the shortcut is a 1×1 convolution where the shape changes."""

    def __init__(self, inp: int, out: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv1 = ConvBN(inp, out, 3, stride=stride)
        self.conv2 = ConvBN(out, out, 3, groups=groups)
        same = inp == out and stride == 1
        self.shortcut = nn.Identity() if same else ConvBN(inp, out, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        return F.relu(self.shortcut(x) + self.conv2(F.relu(self.conv1(x))))
