r"""What a model makes of changed inputs: noise, and changes chosen against it by its gradient.

Notation: x input, y label, L loss, ε the largest change of a number of x, in the units of x (pixels in [0, 1]).
An attack made on one model and shown to another is a *transferred* one: its gradient need not be that of the other.
Sources: Goodfellow et al. 2015, arXiv:1412.6572, section 4 (fast gradient sign); Ebrahimi et al. 2018,
arXiv:1712.06751, section 3 (HotFlip: one character replaced); Papernot et al. 2016, arXiv:1605.07277 (transfer).
Syllabus: 5.11
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from mlcomp.checks import check_codes, check_interval, check_mask, check_values, check_whole
from mlcomp.context import isolated, isolated_run
from mlcomp.layerwise.running import hooked
from mlcomp.modes import evaluating

Loss = Callable[[Tensor, Tensor], Tensor]


@isolated
def add_noise(
    inputs: Tensor, *, std: float, seed: int = 0, limits: tuple[float, float] | None = (0.0, 1.0)
) -> Tensor:
    """Return ``inputs`` plus Gaussian noise, cut off at ``limits``; the same draw for the same seed and shape.

    Args:
        inputs: any shape, floating point; not modified.
        std: of the noise, in the units of the inputs.
        seed: of the draw. All models that are compared see one and the same.
        limits: smallest and largest value that an input can have; None: any.
    Raises:
        ValueError: NaN or inf, a negative std, limits out of order.
    """
    check_values("inputs", inputs)
    check_interval("std", std, "[0, inf)")
    check_whole("seed", seed, 0)
    _check_limits(limits)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(inputs.shape, generator=generator, dtype=torch.float32).to(inputs)
    return _within(inputs.detach() + std * noise, limits)


@isolated_run
def fgsm(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    loss: Loss = F.cross_entropy,
    limits: tuple[float, float] | None = (0.0, 1.0),
    batch_size: int = 500,
) -> Tensor:
    r"""Return the fast-gradient-sign attack $x + \varepsilon\,\mathrm{sign}(\nabla_x L(x, y))$ within ``limits``.

    The attack is against ``model``; show it to another one to see whether it transfers. A gradient that is exactly 0
    moves nothing: where the softmax is saturated, or a layer rounds its inputs, the attack fails and the model is
    none the more robust.

    Args:
        model: runs in eval mode; every module's mode is kept, and no gradient is written.
        inputs: (n, …), floating point; not modified.
        labels: (n, …), whatever ``loss`` takes.
        epsilon: ε ≥ 0.
        loss: ``loss(model(inputs), labels)``, a scalar.
        limits: smallest and largest value that an input can have; None: any.
        batch_size: samples at a time; it changes the memory, not the result.
    Raises:
        ValueError: no sample, not as many labels, NaN or inf, a negative ε, limits out of order.
    Guarantee: no number changes by more than ε (up to float rounding). Where the loss grows with a linear function of
        x, and without limits, no such change raises it more.
    Cost: a forward and a backward pass.
    """
    check_values("inputs", inputs)
    _check_pairs("labels", inputs, labels)
    check_interval("epsilon", epsilon, "[0, inf)")
    check_whole("batch_size", batch_size, 1)
    _check_limits(limits)
    parts = []
    with evaluating(model):
        for x, y in zip(inputs.detach().split(batch_size), labels.split(batch_size), strict=True):
            with torch.enable_grad():
                x = x.clone().requires_grad_()
                gradient = torch.autograd.grad(loss(model(x), y), x)[0]
            parts.append(_within(x.detach() + epsilon * gradient.sign(), limits))
    return torch.cat(parts)


@isolated
def random_tokens(
    tokens: Int64[Tensor, "n length"], *, share: float, allowed: Bool[Tensor, " vocabulary"], seed: int = 0
) -> Int64[Tensor, "n length"]:
    """Return ``tokens`` of which about a ``share``, drawn one by one, is replaced by another allowed token.

    Args:
        tokens: whole numbers from 0, below the vocabulary; not modified.
        share: probability that a token is replaced, in [0, 1].
        allowed: what may stand in its place, each equally likely; at least two tokens.
        seed: of the draw. All models that are compared see one and the same.
    Raises:
        ValueError: a share outside [0, 1], a token outside the vocabulary, fewer than two allowed tokens.
    """
    choice = _allowed(tokens, allowed)
    check_interval("share", share, "[0, 1]")
    check_whole("seed", seed, 0)
    generator = torch.Generator().manual_seed(seed)
    hit = torch.rand(tokens.shape, generator=generator, dtype=torch.float64).to(tokens.device) < share
    place = torch.full((len(allowed),), len(choice), device=tokens.device)
    place[choice] = torch.arange(len(choice), device=tokens.device)
    own = place[tokens]  # beyond the last, if the token itself may not stand anywhere
    others = len(choice) - (own < len(choice)).long()
    drawn = torch.rand(tokens.shape, generator=generator, dtype=torch.float64).to(tokens.device)
    index = (drawn * others).long()
    index = index + (index >= own).long()  # all but the token itself
    return torch.where(hit, choice[index], tokens)


@isolated_run
def hotflip(
    model: nn.Module,
    tokens: Int64[Tensor, "n length"],
    labels: Tensor,
    *,
    embedding: str,
    allowed: Bool[Tensor, " vocabulary"],
    losses: Loss,
    candidates: int = 1,
    batch_size: int = 64,
) -> Int64[Tensor, "n length"]:
    r"""Return each sequence with one token replaced, so that its loss rises as far as the gradient can tell.

    To first order, v in the place of token t at position i raises L by $(e_v - e_t)^\top \partial L/\partial e_i$,
    with $e_i$ the embedding that the model reads there. All positions and tokens are scored in one backward pass. A
    token is a large step, for which the first order says little: so the best ``candidates`` are tried.

    Args:
        model: runs in eval mode; every module's mode is kept, and no gradient is written. It treats the sequences of
            a batch apart from each other.
        tokens: what the model is called with; not modified.
        labels: (n, …), whatever ``loss`` takes; for a language model the next tokens as they were.
        embedding: name of the ``nn.Embedding`` that reads ``tokens``. Only what it puts out is attacked, so a weight
            that the output head shares does no harm.
        allowed: what may stand in a token's place; at least two tokens.
        losses: ``losses(model(tokens), labels)``, one for each sequence, (n,).
        candidates: changes of each sequence that are tried, at most length times the other allowed tokens; 1 trusts
            the gradient.
        batch_size: sequences at a time; it changes the memory, not the result.
    Raises:
        ValueError: no such embedding, another vocabulary, not as many labels, fewer than two allowed tokens.
    Guarantee: exactly one token of each sequence differs. Of all such changes it raises the loss most if L is linear
        in the embeddings, or if all of them are candidates.
    Cost: a forward and a backward pass, n · length · vocabulary scores, and a forward pass for each candidate.
    """
    layer = dict(model.named_modules()).get(embedding)
    if not isinstance(layer, nn.Embedding):
        raise ValueError(f"embedding must name an nn.Embedding of the model, got {embedding!r}")
    choice = _allowed(tokens, allowed)
    if len(allowed) != layer.num_embeddings:
        raise ValueError(f"allowed must be ({layer.num_embeddings},) like the embedding, got {len(allowed)}")
    _check_pairs("labels", tokens, labels)
    check_whole("batch_size", batch_size, 1)
    check_whole("candidates", candidates, 1, tokens.shape[1] * (len(choice) - 1))
    parts = []
    with evaluating(model):
        for x, y in zip(tokens.split(batch_size), labels.split(batch_size), strict=True):
            with torch.enable_grad(), _read_embeddings(layer) as read:
                gradient = torch.autograd.grad(losses(model(x), y).sum(), read)[0]
            table = layer.weight.detach()
            rise = gradient @ table[choice].T - (gradient * table[x]).sum(-1, keepdim=True)
            rise = rise.masked_fill(choice == x[..., None], -torch.inf).flatten(1)
            best, worst_loss = x, torch.full((len(x),), -torch.inf, device=x.device)
            for flat in rise.topk(candidates, 1).indices.T:
                changed = x.scatter(1, flat[:, None] // len(choice), choice[flat % len(choice)][:, None])
                if candidates == 1:
                    best = changed
                    break
                loss = losses(model(changed), y)
                best = torch.where((loss > worst_loss)[:, None], changed, best)
                worst_loss = torch.maximum(loss, worst_loss)
            parts.append(best)
    return torch.cat(parts)


@contextmanager
def _read_embeddings(layer: nn.Embedding) -> Iterator[list[Tensor]]:
    """Let the model compute with a copy of what ``layer`` puts out; the copy, a leaf, is in the list afterwards."""
    read: list[Tensor] = []

    def replace(module: nn.Module, arguments: object, output: Tensor) -> Tensor:
        read.append(output.detach().requires_grad_())
        return read[-1]

    with hooked([layer.register_forward_hook(replace)]):
        yield read


def _within(x: Tensor, limits: tuple[float, float] | None) -> Tensor:
    return x if limits is None else x.clamp(*limits)


def _check_limits(limits: tuple[float, float] | None) -> None:
    if limits is not None and not (isinstance(limits, tuple) and len(limits) == 2 and limits[0] < limits[1]):
        raise ValueError(f"limits must be (smallest, largest) or None, got {limits!r}")


def _check_pairs(name: str, inputs: Tensor, labels: Tensor) -> None:
    if len(inputs) != len(labels) or len(inputs) == 0:
        raise ValueError(f"inputs and {name} must have the same length ≥ 1, got {len(inputs)} and {len(labels)}")


def _allowed(tokens: Tensor, allowed: Tensor) -> Tensor:
    """Return the allowed tokens as numbers."""
    check_mask("allowed", allowed, allowed if isinstance(allowed, Tensor) and allowed.ndim == 1 else tokens[0])
    check_codes("tokens", tokens, len(allowed) - 1)
    if tokens.ndim != 2:
        raise ValueError(f"tokens must be (n, length), got {tuple(tokens.shape)}")
    choice = allowed.nonzero()[:, 0]
    if len(choice) < 2:
        raise ValueError(f"at least two tokens must be allowed, got {len(choice)}")
    return choice
