r"""The course's small vision transformer for 28×28 digits: 49 tokens of 48 numbers, four blocks, 108 154 parameters.

Two convolutions of stride 2 cut an image into 7×7 tokens, token i for the 4×4 pixels at row ⌊i/7⌋, column i mod 7;
each sees a few pixels around them, too. A class token in front collects what the head reads. Pre-norm blocks.
Sources: Dosovitskiy et al. 2020, arXiv:2010.11929, eq. (1)-(4); Xiao et al. 2021, arXiv:2106.14881 (the convolutional
stem: with patches alone 4000 images are too few).   Syllabus: 3.12
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mlcomp.context import isolated
from mlcomp.models.pretrained import build

WIDTH, HEAD, BLOCKS, MLP_RATIO = 48, 12, 4, 3
GRID = 7  # tokens on a side
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@isolated
def vit(*, pretrained: bool = True, seed: int = 0) -> "ViT":
    """Return the network in eval mode: (n, 1, 28, 28) pixels in [0, 1] → (n, 10) logits.

    Args:
        pretrained: load the committed weights (float16 in the file, float32 in the model; see the model card); else
            initialize from ``seed``.
        seed: of the initialization; the global random state is left alone.
    """
    return build(ViT, "vit", pretrained=pretrained, seed=seed)


class ViT(nn.Module):
    """Stem, positions, blocks, a last norm, and a head that reads the class token."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, WIDTH // 2, 3, 2, 1), nn.GELU(), nn.Conv2d(WIDTH // 2, WIDTH, 3, 2, 1))
        self.class_token = nn.Parameter(0.02 * torch.randn(WIDTH))
        self.position = nn.Parameter(0.02 * torch.randn(1 + GRID**2, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 10)

    def embed(self, images: Float[Tensor, "n 1 28 28"]) -> Float[Tensor, "n 50 48"]:
        """Return the tokens that enter the first block, the class token first."""
        patches = self.stem(images).flatten(2).mT
        return torch.cat((self.class_token.expand(len(images), 1, -1), patches), 1) + self.position

    def classify(self, tokens: Float[Tensor, "n _ 48"]) -> Float[Tensor, "n 10"]:
        """Return the logits of what the last block gave."""
        return self.head(self.norm(tokens[:, 0]))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (n, 10) of ``images`` (n, 1, 28, 28)."""
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return self.classify(x)


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, MLP_RATIO * WIDTH)
        self.down = nn.Linear(MLP_RATIO * WIDTH, WIDTH)

    def forward(self, x: Tensor, attend: Attend = F.scaled_dot_product_attention) -> Tensor:
        """Return the output (n, length, width); ``attend(q, k, v)`` mixes the heads (n, heads, length, 12)."""
        n, length, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, length, 3, -1, HEAD).permute(2, 0, 3, 1, 4)
        x = x + self.out(attend(q, k, v).transpose(1, 2).reshape(n, length, WIDTH))
        return x + self.down(F.gelu(self.up(self.norm2(x))))
