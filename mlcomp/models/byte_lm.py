r"""A family of small language models over bytes, one for each width, all trained alike on the same text.

Pre-norm transformer decoder: RMSNorm, causal attention with rotary positions, a GELU layer of four times the width,
no biases; the output head is the embedding itself. A model of width d has $48d^2 + 265d$ parameters.
Sources: Radford et al. 2019 (decoder); Su et al. 2021, arXiv:2104.09864, eq. (34) (rotary positions); Zhang and
Sennrich 2019, arXiv:1910.07467 (RMSNorm).   Syllabus: 1.12
"""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from mlcomp.checks import check_whole
from mlcomp.context import isolated
from mlcomp.models.pretrained import build

WIDTHS = (16, 32, 48, 64, 96, 128)
LAYERS = 4
HEAD = 16  # dimensions of an attention head
CONTEXT = 256  # bytes that the models were trained to look at


@isolated
def byte_lm(width: int, *, pretrained: bool = True, seed: int = 0) -> "ByteLM":
    """Return the model of one width in eval mode: (n, length) bytes → (n, length, 256) logits of the next byte.

    Args:
        width: one of ``WIDTHS`` with pretrained weights; any multiple of 16 without.
        pretrained: load the committed weights (float16 in the file, float32 in the model); else initialize from
            ``seed``.
        seed: of the initialization; the global random state is left alone.
    Raises:
        ValueError: a width that is no positive multiple of 16, or one that was not trained.
    """
    check_whole("width", width, HEAD)
    if width % HEAD:
        raise ValueError(f"width must be a positive multiple of {HEAD}, got {width!r}")
    if pretrained and width not in WIDTHS:
        raise ValueError(f"the trained widths are {WIDTHS}, got {width!r}")
    return build(lambda: ByteLM(width), f"byte_lm_{width}", pretrained=pretrained, seed=seed)


class ByteLM(nn.Module):
    """Embedding (256 × width), four blocks, a last norm, and the embedding again as the head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(LAYERS))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        nn.init.normal_(self.embedding.weight, std=0.5 / math.sqrt(width))

    def forward(self, tokens: Int64[Tensor, "n length"]) -> Float[Tensor, "n length 256"]:
        """Return the logits of the byte after each position."""
        x = self.embedding(tokens)
        rotation = rotary_angles(tokens.shape[1], x.device)
        for block in self.blocks:
            x = block(x, rotation)
        return F.linear(self.norm(x), self.embedding.weight)


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.norm2 = nn.RMSNorm(width, eps=1e-6)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        for layer in (self.out, self.down):  # so that the residual stream starts with the same size at any depth
            nn.init.normal_(layer.weight, std=1 / math.sqrt(2 * LAYERS * layer.in_features))

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        """Return the block's output (n, length, width)."""
        n, length, _ = x.shape
        # As many heads as the weights have: some may have been removed.
        q, k, v = (
            part.view(n, length, -1, HEAD).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(rotate(q, rotation), rotate(k, rotation), v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def rotary_angles(length: int, device: torch.device) -> Float[Tensor, "2 length half"]:
    """Return cosines and sines of position · 1000^(−2i/HEAD), i below HEAD/2."""
    steps = torch.arange(0, HEAD, 2, dtype=torch.float32, device=device)  # whatever the default dtype is
    frequency = 1000.0 ** (-steps / HEAD)
    angle = torch.arange(length, device=device)[:, None] * frequency
    return torch.stack((angle.cos(), angle.sin()))


def rotate(x: Float[Tensor, "n heads length dim"], rotation: Float[Tensor, "2 length half"]) -> Tensor:
    """Turn the pairs (x_i, x_{i + dim/2}) of each position by its angles."""
    cos, sin = rotation.to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)
