"""How good a compressed model is: the perplexity of a language model, or how far others agree with the dense one."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from mlcomp.deploy.opened_model import ENCODER, LANGUAGE_MODEL
from mlcomp.layerwise.running import call_model
from mlcomp.metrics.model import perplexity
from mlcomp.modes import evaluating


@dataclass(frozen=True)
class Agreement:
    """How far a compressed model's outputs agree with the dense one's.

    Attributes:
        output_error: ‖y − ŷ‖²/‖y‖² over all outputs.
        same_class: share of inputs with the same largest logit; None where outputs are no logits of classes.
    """

    output_error: float
    same_class: float | None

    def __str__(self) -> str:
        error = f"relative output error {self.output_error:.3g}"
        return error if self.same_class is None else f"the same class on {self.same_class:.1%} of the inputs, {error}"


class _WithLogits(nn.Module):
    """A language model that returns its logits as transformers' models do."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=main_output(self.model(tokens)))


def language_perplexity(model: nn.Module, batches: Iterable[Tensor]) -> float:
    """Return the perplexity of a model whose output is its logits, or holds them."""
    return perplexity(_WithLogits(model), batches)


def main_output(output: Any) -> Tensor:
    """Return the tensor that a model's output is about: logits, or the last hidden states.

    Raises:
        TypeError: there is none.
    """
    for key in ("logits", "last_hidden_state"):
        if isinstance(found := getattr(output, key, None), Tensor):
            return found
    if isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise TypeError(f"the model returns a {type(output).__name__}, which is no tensor and holds no logits")
    return output


def outputs_of(model: nn.Module, batches: Iterable[Any], valid: str | None) -> list[Tensor]:
    """Return the main output of each batch on the CPU, without the positions that are padding."""
    outputs = []
    with evaluating(model):
        for batch in batches:
            output = main_output(call_model(model, batch)).float().cpu()
            mask = batch.get(valid) if isinstance(batch, Mapping) and valid is not None else None
            if mask is not None and output.shape[: mask.ndim] == mask.shape:
                output = output[mask.bool()]
            outputs.append(output)
    return outputs


def agreement(dense: Sequence[Tensor], compressed: Sequence[Tensor], *, classes: bool) -> Agreement:
    """Return how far the outputs of :func:`outputs_of` agree; ``classes``: they are logits (samples, classes)."""
    difference = sum(float((b.double() - a.double()).square().sum()) for a, b in zip(dense, compressed, strict=True))
    total = sum(float(a.double().square().sum()) for a in dense)
    error = 0.0 if difference == 0 else difference / total if total else float("inf")
    if not classes:
        return Agreement(error, None)
    same = torch.cat([a.argmax(-1) == b.argmax(-1) for a, b in zip(dense, compressed, strict=True)])
    return Agreement(error, float(same.double().mean()))


class Measure:
    """Measures the dense model at once, and compressed ones later, on the same batches."""

    def __init__(self, model: nn.Module, batches: Sequence[Any], *, kind: str, valid: str | None):
        self.batches, self.kind, self.valid = batches, kind, valid
        self.before: Any = self._of(model)

    def _of(self, model: nn.Module) -> Any:
        if self.kind == LANGUAGE_MODEL:
            return language_perplexity(model, self.batches)
        return outputs_of(model, self.batches, self.valid)

    def perplexities(self, model: nn.Module) -> tuple[float, float] | None:
        """Return those of the dense and the compressed model; None if it is no language model."""
        return (self.before, self._of(model)) if self.kind == LANGUAGE_MODEL else None

    def agreement(self, model: nn.Module) -> Agreement | None:
        """Return how far the compressed model agrees with the dense one; None if it is a language model."""
        if self.kind == LANGUAGE_MODEL:
            return None
        classes = all(output.ndim == 2 for output in self.before) and self.kind != ENCODER
        return agreement(self.before, self._of(model), classes=classes)
