r"""Importance of attention heads: how much the loss feels a head's mask, from one backward pass.

Notation: $\xi_h$ the mask of head h, 1 in the whole model (see :mod:`mlcomp.prune.structured.attention_heads`),
$\mathrm{Att}_h(x)$ what the head gives for example x, all positions; L(x) the loss of one example.

$$I_h = \mathbb E_{x}\left|\frac{\partial L(x)}{\partial\xi_h}\right|
      = \mathbb E_{x}\left|\mathrm{Att}_h(x)^\top\frac{\partial L(x)}{\partial\mathrm{Att}_h(x)}\right| \quad (2)$$

Where the absolute value stands matters, since terms of both signs cancel inside it. Eq. (2) takes it per example. The
authors' code takes it per position, so nothing cancels within an example; a much-used port takes it per batch, which
is eq. (2) for batches of one example only, and otherwise depends on their size.
Source: Michel, Levy, Neubig 2019, arXiv:1905.10650, section 2.3 and eq. (2).   Syllabus: 4.10
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from mlcomp.checks import check_choice, check_finite
from mlcomp.context import isolated_run
from mlcomp.layerwise.running import check_batches, hooked
from mlcomp.modes import evaluating, home, keeping_modes
from mlcomp.prune.structured.attention_heads import inputs_masked

# loss(model, batch) → (n,), the loss of each example of the batch.
Losses = Callable[[nn.Module, Any], Tensor]

PER = ("example", "position", "batch")


@isolated_run
def head_importance(
    model: nn.Module,
    batches: Iterable,
    heads: Mapping[str, int],
    loss: Losses,
    *,
    per: str = "example",
    normalize: bool = True,
) -> dict[str, Tensor]:
    """Return the importance of each head, eq. (2).

    Args:
        model: run in eval mode; not modified.
        batches: whatever ``loss`` takes, read once.
        heads: name of an output projection → its number of heads (:func:`mlcomp.prune.attention_heads`).
        loss: ``loss(model, batch)`` returns (n,), the loss of each example of the batch.
        per: of what the absolute value is taken: "example", eq. (2); "position", or "batch" (its mean), which other
            code does. The mean over all examples follows; batches count by their examples.
        normalize: divide the scores of each layer by their ℓ2 norm, as the paper does before it compares layers.
    Returns:
        name → (heads,), float64.
    Raises:
        ValueError: no batch; a name that is no module; a number of heads that does not divide its inputs; losses
            that are not (n,), or hold NaN or infinity; a layer that is called more than once, or has no part in them.
    Guarantee: with "example" and "position" the scores do not depend on how the examples are batched.
    Cost: one forward and backward pass over the batches.
    """
    check_choice("per", per, PER)
    check_batches(batches)
    sums: dict[str, Any] = dict.fromkeys(heads, 0.0)
    examples = 0
    with keeping_modes(model), torch.enable_grad():
        model.eval()
        for batch in batches:
            inputs, losses = _inputs(model, batch, heads, loss)
            gradients = torch.autograd.grad(losses.sum(), list(inputs.values()), allow_unused=True)
            for (name, x), gradient in zip(inputs.items(), gradients, strict=True):
                if gradient is None:
                    raise ValueError(f"layer {name!r} has no part in the loss")
                slopes = (x.detach().double() * gradient.double()).reshape(
                    len(x), -1, heads[name], x.shape[-1] // heads[name]
                )
                sums[name] = sums[name] + _sizes(slopes.sum(-1), per)
            examples += len(losses)
    if not examples:
        raise ValueError("batches is empty")
    scores = {name: total / examples for name, total in sums.items()}
    return {name: score / score.norm().clamp(min=1e-300) if normalize else score for name, score in scores.items()}


def _sizes(slopes: Tensor, per: str) -> Tensor:
    """Return the sum over a batch's examples of (n, positions, heads), absolute where ``per`` says."""
    if per == "position":
        return slopes.abs().sum((0, 1))
    return slopes.sum(1).abs().sum(0) if per == "example" else slopes.sum((0, 1)).abs()


def _inputs(model: nn.Module, batch: Any, heads: Mapping[str, int], loss: Losses) -> tuple[dict[str, Tensor], Tensor]:
    """Return what each output projection read, in a graph that ends in the losses, and these."""
    inputs: dict[str, Tensor] = {}
    modules = _modules(model, heads)

    def hook(name: str) -> Callable:
        def before(module: nn.Module, args: tuple) -> tuple:
            x = args[0]
            if name in inputs:
                raise ValueError(f"layer {name!r} is called more than once, so its heads have several outputs")
            if x.shape[-1] % heads[name]:
                raise ValueError(f"{heads[name]} heads do not divide the {x.shape[-1]} inputs of {name!r}")
            inputs[name] = x if x.requires_grad else x.detach().requires_grad_()
            return (inputs[name], *args[1:])

        return before

    with hooked([module.register_forward_pre_hook(hook(name)) for name, module in modules.items()]):
        losses = _losses(model, batch, loss)
    silent = [name for name in heads if name not in inputs]
    if silent:
        raise ValueError(f"the model did not call {silent} on a batch")
    return inputs, losses


def _modules(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    modules, found = dict(model.named_modules()), list(names)
    unknown = [name for name in found if name not in modules]
    if unknown or not found:
        raise ValueError(
            f"the model has no module(s) {unknown}" if unknown else "heads is empty: name output projections"
        )
    return {name: modules[name] for name in found}


def _losses(model: nn.Module, batch: Any, loss: Losses) -> Tensor:
    losses = loss(model, batch)
    if not isinstance(losses, Tensor) or losses.ndim != 1 or not len(losses):
        given = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(f"loss must return (n,), the loss of each example, got {given}")
    check_finite("the losses", losses.detach())
    return losses


@isolated_run
def head_loss_changes(
    model: nn.Module, batches: Iterable, heads: Mapping[str, int], loss: Losses
) -> dict[str, Tensor]:
    """Return the loss without each head less that of the whole model: what the importance estimates.

    Args:
        model, batches, heads, loss: as for :func:`head_importance`; the batches are read again for each head.
    Returns:
        name → (heads, examples), float64; positive where the head was needed. The mean over the examples is the
        table of the paper with the opposite sign; their spread says how sure it is.
    Raises:
        ValueError: as :func:`head_importance`; batches that can be read only once.
    Cost: a forward pass over the batches for each head.
    """
    check_batches(batches, again="the loss without each head")
    _modules(model, heads)
    changes = {}
    with evaluating(model):
        whole = all_losses(model, batches, loss)
        for name, count in heads.items():
            found = []
            for head in range(count):
                mask = torch.ones(count, dtype=torch.float32, device="cpu")
                mask[head] = 0
                with inputs_masked(model, {name: mask}):
                    found.append(all_losses(model, batches, loss) - whole)
            changes[name] = torch.stack(found)
    return changes


def all_losses(model: nn.Module, batches: Iterable, loss: Losses) -> Tensor:
    """Return the losses of the examples of all batches, (examples,), float64."""
    losses = [_losses(model, batch, loss).detach().double().cpu() for batch in batches]
    if not losses:
        raise ValueError("batches is empty")
    return torch.cat(losses)


@isolated_run
def next_token_losses(model: nn.Module, tokens: Int64[Tensor, "n length"]) -> Float[Tensor, " n"]:
    """Return the mean log loss [nats a token] of each sequence, in which the first token is not predicted.

    Args:
        model: gives logits, (n, length, vocabulary), or an object that has them as ``logits``. It is run in the mode
            that it has, and gradients are recorded if the caller records them.
        tokens: at least two in a sequence.
    Raises:
        ValueError: sequences of one token.
    """
    if tokens.ndim != 2 or tokens.shape[1] < 2:
        raise ValueError(f"tokens must be (n, length) with a length of at least 2, got {tuple(tokens.shape)}")
    tokens = tokens.to(home(model))
    out = model(tokens)
    logits = out if isinstance(out, Tensor) else out.logits
    return F.cross_entropy(logits[:, :-1].mT.float(), tokens[:, 1:], reduction="none").mean(1)
