r"""The parts of dynamic token sparsification: decisions that can be learned, masked attention, the ratio loss.

Notation: n images, N tokens of each; D decisions (n, N), 1 where a token is kept; ρ the share to keep.
Source: Rao et al. 2021, arXiv:2106.02034, section 3 (predictor, attention mask, ratio loss); Jang, Gu, Poole 2016,
arXiv:1611.01144 (Gumbel-softmax, straight-through).   Syllabus: 3.12
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mlcomp.checks import check_floating, check_interval, check_like, check_positive, check_values
from mlcomp.context import isolated

# What a dropped key adds to the gradient is e^(its score − the best kept score), cut off here: e^20 in float32.
_HIGHEST = 20.0


@isolated
def gumbel_keep(
    logits: Float[Tensor, "*batch 2"], *, generator: torch.Generator | None = None, temperature: float = 1.0
) -> Float[Tensor, "*batch"]:
    r"""Draw 1 (keep) with probability softmax(logits)[0], else 0; a gradient passes as if the draw were soft.

    $D = 1$ where $l_0 + g_0 > l_1 + g_1$ with Gumbel noise $g = -\log E$, E exponential. The gradient is that of
    $\mathrm{softmax}((l + g)/\tau)_0$ (straight-through).

    Args:
        logits: (…, 2), keep first.
        generator: on the CPU; None: the global one, as dropout draws.
        temperature: τ > 0; it changes the gradient, not the draw.
    Raises:
        ValueError: another last dimension, NaN or inf, τ not positive.
    Guarantee: exactly 0 or 1.
    """
    check_values("logits", logits)
    check_positive("temperature", temperature)
    if logits.ndim < 1 or logits.shape[-1] != 2:
        raise ValueError(f"logits must be (…, 2), keep and drop, got {tuple(logits.shape)}")
    wide = torch.promote_types(logits.dtype, torch.float32)
    exponential = torch.empty(logits.shape, dtype=wide, device="cpu").exponential_(generator=generator)
    noisy = logits.to(wide) - exponential.log().to(logits.device)
    hard = (noisy[..., 0] > noisy[..., 1]).to(wide)
    soft = (noisy / temperature).softmax(-1)[..., 0]
    return (hard + (soft - soft.detach())).to(logits.dtype)


@isolated
def masked_attention(
    q: Float[Tensor, "n heads length dim"],
    k: Float[Tensor, "n heads length dim"],
    v: Float[Tensor, "n heads length dim"],
    *,
    kept: Float[Tensor, "n length"],
) -> Float[Tensor, "n heads length dim"]:
    r"""Return softmax attention in which dropped tokens are no keys, though each token still sees itself.

    $A_{ij} = e^{z_{ij}} G_{ij} / \sum_k e^{z_{ik}} G_{ik}$, $z = qk^\top/\sqrt{\mathrm{dim}}$, $G_{ij} = 1$ where
    i = j and kept_j elsewhere. Differentiable in ``kept`` as well.

    Args:
        q, k, v: of each head.
        kept: 1 where a token is kept, 0 where it is dropped.
    Guarantee: rows of kept tokens are those of attention over the kept tokens alone. No row is NaN, whatever is
        dropped.
    Cost: that of dense attention: masking saves nothing.
    """
    z = q @ k.mT / q.shape[-1] ** 0.5
    own = torch.eye(kept.shape[1], dtype=kept.dtype, device=kept.device)
    visible = kept[:, None, None, :] * (1 - own) + own
    best = z.detach().masked_fill(visible == 0, -torch.inf).amax(-1, keepdim=True)
    weights = (z - best).clamp(max=_HIGHEST).exp() * visible
    return (weights / weights.sum(-1, keepdim=True)) @ v


@isolated
def ratio_loss(decisions: Sequence[Float[Tensor, "n tokens"]], ratios: Sequence[float]) -> Float[Tensor, ""]:
    """Return the mean over stages and images of (ρ − share of kept tokens)².

    Args:
        decisions: one (n, tokens) for each stage.
        ratios: ρ of each stage, in [0, 1].
    Raises:
        ValueError: no stage, another number of ratios, shapes that differ, decisions outside [0, 1].
    """
    if not len(decisions) or len(decisions) != len(ratios):
        raise ValueError(f"give one ratio for each stage and at least one, got {len(decisions)} and {len(ratios)}")
    for stage, (kept, ratio) in enumerate(zip(decisions, ratios, strict=True)):
        check_interval(f"ratios[{stage}]", ratio, "[0, 1]")
        check_floating(f"decisions[{stage}]", kept)
        if kept.ndim != 2 or not kept.numel():
            raise ValueError(f"decisions[{stage}] must be (n, tokens), got {tuple(kept.shape)}")
        check_like(f"decisions[{stage}]", kept, decisions[0].shape, "the first stage's")
        if ((kept < 0) | (kept > 1)).any():
            raise ValueError(f"decisions[{stage}] must lie in [0, 1], got {float(kept.min())} … {float(kept.max())}")
    shares = torch.stack([kept.mean(1) for kept in decisions])
    return (shares - shares.new_tensor(ratios)[:, None]).square().mean()


class TokenPredictor(nn.Module):
    """Two logits for each token, keep first: from half of its own features, and half of the kept tokens' mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.decide = nn.Sequential(
            nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, width // 4), nn.GELU()
        )
        self.logits = nn.Linear(width // 4, 2)

    def forward(self, tokens: Float[Tensor, "n m width"], kept: Float[Tensor, "n m"]) -> Float[Tensor, "n m 2"]:
        """Return the logits; ``kept`` has at least one token of each image."""
        local, everywhere = self.features(tokens).chunk(2, -1)
        mean = (everywhere * kept[..., None]).sum(1, keepdim=True) / kept.sum(1)[:, None, None]
        return self.logits(self.decide(torch.cat((local, mean.expand_as(local)), -1)))


def at_least_one(decision: Float[Tensor, "n m"], scores: Float[Tensor, "n m"], before: Tensor) -> Tensor:
    """Return ``decision``, the token of the highest score among ``before`` kept where an image would lose all."""
    best = scores.detach().masked_fill(before.detach() == 0, -torch.inf).argmax(1, keepdim=True)
    empty = decision.detach().sum(1, keepdim=True) == 0
    return decision + torch.zeros_like(decision).scatter(1, best, 1.0) * empty
