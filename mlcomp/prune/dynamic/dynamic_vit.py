r"""DynamicViT: a small predictor between blocks decides which tokens of this image the later blocks still see.

Notation: ρ_s the share of all N tokens that stage s keeps; D_s (n, N) its decisions, D_s = 0 where D_{s−1} = 0. The
class token always stays. Training keeps dropped tokens in the batch and masks them as keys; inference gathers the
kept ones.
Source: Rao et al. 2021, arXiv:2106.02034.   Syllabus: 3.12
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from mlcomp.checks import check_interval, check_like, check_whole
from mlcomp.layerwise.fit import copy_model
from mlcomp.models.vit import GRID, MLP_RATIO, WIDTH, ViT
from mlcomp.prune.dynamic.token_cost import vit_multiply_adds
from mlcomp.prune.dynamic.token_keeping import TokenPredictor, at_least_one, gumbel_keep, masked_attention

TOKENS = GRID**2


@dataclass(frozen=True)
class Decided:
    """What the masked network gives: logits (n, 10), its last tokens (n, N, width), and D of each stage, (n, N)."""

    logits: Tensor
    tokens: Tensor
    decisions: tuple[Tensor, ...]


@dataclass(frozen=True)
class Selected:
    """What the network with fewer tokens gives: logits (n, 10), and which tokens each stage kept, (n, N)."""

    logits: Tensor
    kept: tuple[Bool[Tensor, "n tokens"], ...]


class DynamicViT(nn.Module):
    """A copy of the course's vision transformer with a :class:`TokenPredictor` before some blocks.

    Args:
        backbone: not modified.
        ratios: block (0, 1, …) before which tokens are dropped → share ρ of all tokens that are left there.
        seed: of the predictors' start; the global random state is left alone.
    Raises:
        ValueError: no stage, a block that is not there, a ρ outside (0, 1] or larger than the one before.
    """

    def __init__(self, backbone: ViT, ratios: Mapping[int, float], *, seed: int = 0) -> None:
        super().__init__()
        if not ratios:
            raise ValueError("ratios names no block")
        last = 1.0
        for block, ratio in sorted(ratios.items()):
            check_whole("a block of ratios", block, 0, len(backbone.blocks) - 1)
            check_interval(f"ratios[{block}]", ratio, "(0, 1]")
            if ratio > last:
                raise ValueError(f"ratios are of all tokens and cannot rise, got {ratio} after {last}")
            last = ratio
        self.backbone = cast(ViT, copy_model(backbone))
        self.ratios = dict(sorted(ratios.items()))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.predictors = nn.ModuleDict({str(block): TokenPredictor(WIDTH) for block in self.ratios})
        self.to(backbone.head.weight)

    @property
    def counts(self) -> tuple[int, ...]:
        """How many tokens each stage leaves every image: ⌊ρN⌋, at least 1."""
        return tuple(max(1, math.floor(ratio * TOKENS + 1e-9)) for ratio in self.ratios.values())

    def decide(
        self,
        images: Float[Tensor, "n 1 28 28"],
        *,
        generator: torch.Generator | None = None,
        decisions: tuple[Tensor, ...] | None = None,
    ) -> Decided:
        """Run with tokens masked, as in training: decisions are drawn, and a gradient reaches the predictors.

        Args:
            images: on the device of the model.
            generator: of the Gumbel noise; None: the global one.
            decisions: (n, N) of 0 and 1 for each stage, to be used instead of drawn ones.
        """
        x = self.backbone.embed(images)
        kept = x.new_ones(x.shape[0], TOKENS)
        made: list[Tensor] = []
        for number, block in enumerate(self.backbone.blocks):
            if number in self.ratios:
                if decisions is None:
                    logits = self.predictors[str(number)](x[:, 1:], kept)
                    drawn = gumbel_keep(logits, generator=generator) * kept
                    kept = at_least_one(drawn, logits[..., 0] - logits[..., 1], kept)
                else:
                    check_like(f"decisions[{len(made)}]", decisions[len(made)], kept.shape, "images and tokens")
                    kept = decisions[len(made)]
                made.append(kept)
            x = block(x, partial(masked_attention, kept=F.pad(kept, (1, 0), value=1.0))) if made else block(x)
        return Decided(self.backbone.classify(x), self.backbone.norm(x[:, 1:]), tuple(made))

    def select(
        self,
        images: Float[Tensor, "n 1 28 28"],
        *,
        scores: Float[Tensor, "n tokens"] | None = None,
        threshold: float | int | None = None,
    ) -> Selected:
        """Run with dropped tokens taken out of the batch.

        Args:
            images: on the device of the model.
            scores: what is kept first at every stage; None: the predictors' logit of keep minus that of drop.
            threshold: None keeps ``counts`` tokens of every image, those with the highest scores. Otherwise an image
                keeps the tokens whose probability is above it (sigmoid(score); ½ is "more likely than not"), and the
                best one if there is none. The batch is as long as its longest image.
        Raises:
            ValueError: scores of another shape, NaN or inf in them, a threshold outside [0, 1].
        """
        if threshold is not None:
            check_interval("threshold", threshold, "[0, 1]")
        if scores is not None:
            check_like("scores", scores, (len(images), TOKENS), "images and tokens")
        x = self.backbone.embed(images)
        place = torch.arange(TOKENS, device=x.device).expand(len(x), -1)  # which token each position holds
        present = torch.ones_like(place, dtype=torch.bool)
        kept: list[Tensor] = []
        for number, block in enumerate(self.backbone.blocks):
            if number in self.ratios:
                score = self._scores(number, x, present) if scores is None else scores.gather(1, place)
                score = score.masked_fill(~present, -torch.inf)
                count = torch.full((len(x),), self.counts[len(kept)], device=x.device)
                if threshold is not None:
                    count = (score.sigmoid() > threshold).sum(1).clamp(min=1)
                order = score.argsort(dim=1, descending=True, stable=True)[:, : int(count.max())]
                present = torch.arange(order.shape[1], device=x.device) < count[:, None]
                place = place.gather(1, order)
                x = torch.cat((x[:, :1], x[:, 1:].gather(1, order[..., None].expand(-1, -1, x.shape[-1]))), 1)
                kept.append(torch.zeros(len(x), TOKENS, dtype=torch.bool, device=x.device).scatter(1, place, present))
            if present.all():
                x = block(x)
            else:
                x = block(x, partial(masked_attention, kept=F.pad(present.to(x.dtype), (1, 0), value=1.0)))
        return Selected(self.backbone.classify(x), tuple(kept))

    def _scores(self, number: int, x: Tensor, present: Tensor) -> Tensor:
        logits = self.predictors[str(number)](x[:, 1:], present.to(x.dtype))
        return logits[..., 0] - logits[..., 1]

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (n, 10) with ``counts`` tokens of each image."""
        return self.select(images).logits

    def multiply_adds(self, counts: tuple[int, ...] | None = None, *, predictors: bool = True) -> int:
        """Return the multiply-adds for an image that keeps ``counts`` tokens; None: those of every image.

        Stem, blocks, head and, unless a rule without them chooses, the predictors; norms and activations are free.
        """
        counts = self.counts if counts is None else counts
        stages = dict(zip(self.ratios, counts, strict=True))
        left, tokens, choosing = TOKENS, [], 0
        for number in range(len(self.backbone.blocks)):
            if number in stages:
                weights = [m.weight for m in self.predictors[str(number)].modules() if isinstance(m, nn.Linear)]
                choosing += left * sum(w.numel() for w in weights)
                left = stages[number]
            tokens.append(1 + left)
        convolutions = [m for m in self.backbone.stem if isinstance(m, nn.Conv2d)]
        stem = [m.weight.numel() * side**2 for m, side in zip(convolutions, (2 * GRID, GRID), strict=True)]
        blocks = vit_multiply_adds(tokens, width=WIDTH, mlp_ratio=MLP_RATIO)
        return sum(stem) + blocks + self.backbone.head.weight.numel() + (choosing if predictors else 0)
