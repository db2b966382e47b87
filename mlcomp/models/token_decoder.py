"""A small causal transformer over a vocabulary of its own, which can go on from what it has computed.

The blocks are those of :func:`mlcomp.models.byte_lm` (pre-norm, rotary positions); the head is the embedding.
Syllabus: 5.08, 5.09
"""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from mlcomp.checks import check_whole
from mlcomp.context import isolated
from mlcomp.models.byte_lm import HEAD, Block, rotary_angles, rotate
from mlcomp.models.pretrained import build

Past = tuple[Tensor, Tensor]


@isolated
def token_decoder(vocabulary: int, width: int, layers: int, *, seed: int = 0) -> "TokenDecoder":
    """Return a new network in eval mode: (n, length) tokens → (n, length, vocabulary) logits of the next token.

    Args:
        vocabulary: how many tokens there are. width: of the residual stream, a multiple of 16. layers: blocks.
        seed: of the initialization; the global random state is left alone.
    Raises:
        ValueError: a count below 1, a width that is no positive multiple of 16.
    """
    check_whole("vocabulary", vocabulary, 1)
    check_whole("layers", layers, 1)
    check_whole("width", width, HEAD)
    if width % HEAD:
        raise ValueError(f"width must be a positive multiple of {HEAD}, got {width!r}")
    return build(lambda: TokenDecoder(vocabulary, width, layers), "", pretrained=False, seed=seed)


class TokenDecoder(nn.Module):
    """Embedding (vocabulary × width), blocks, a last norm, and the embedding again as the head."""

    def __init__(self, vocabulary: int, width: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(CachedBlock(width) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        nn.init.normal_(self.embedding.weight, std=0.5 / math.sqrt(width))

    def forward(self, tokens: Int64[Tensor, "n length"]) -> Float[Tensor, "n length vocabulary"]:
        """Return the logits of the token after each position."""
        return self.extend(tokens, None)[0]

    def extend(
        self, tokens: Int64[Tensor, "n new"], past: list[Past] | None
    ) -> tuple[Float[Tensor, "n new vocabulary"], list[Past]]:
        """Return the logits after each new token, and keys and values of all blocks, the past's included."""
        x = self.embedding(tokens)
        seen = 0 if past is None else past[0][0].shape[2]
        rotation = rotary_angles(seen + tokens.shape[1], x.device)[:, seen:]
        kept = []
        for i, block in enumerate(self.blocks):
            assert isinstance(block, CachedBlock)
            x, both = block.extend(x, rotation, None if past is None else past[i])
            kept.append(both)
        return F.linear(self.norm(x), self.embedding.weight), kept


class CachedBlock(Block):
    """A block that can go on from keys and values of earlier positions."""

    def extend(self, x: Tensor, rotation: Tensor, past: Past | None) -> tuple[Tensor, Past]:
        """Return the block's output (n, new, width), and keys and values of all positions (n, heads, length, dim)."""
        n, new, width = x.shape
        heads = self.qkv(self.norm1(x)).view(n, new, 3, width // HEAD, HEAD).permute(2, 0, 3, 1, 4)
        q, k, v = rotate(heads[0], rotation), rotate(heads[1], rotation), heads[2]
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        length = k.shape[2]
        mask = torch.ones(new, length, dtype=torch.bool, device=x.device).tril(length - new)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, new, width))
        return x + self.down(F.gelu(self.up(self.norm2(x)))), (k, v)
