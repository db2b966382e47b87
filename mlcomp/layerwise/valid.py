"""Which positions of a batch count: padding is no input that a layer has to be good at.

A mask is True (or 1) where a position is valid, (batch, tokens) like transformers' ``attention_mask``. Whether it
fits a layer's input is decided by shapes; what could be meant in two ways is refused, for a wrong mask gives a wrong
Hessian without a word.   Syllabus: 2.01
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Rule = str | Callable[[Any], Tensor | None] | None
Valid = Rule | Mapping[str, Rule]


def check_valid(valid: Valid, names: Iterable[str]) -> None:
    """Raise unless each of the layers ``names`` has one mask that can be its own.

    Raises:
        ValueError: one mask for the layers of an encoder and of a decoder, which read different tokens; a mapping
            without an entry for a layer.
    """
    if valid is None:
        return
    names = list(names)
    if isinstance(valid, Mapping):
        lost = [name for name in names if _prefix(valid, name) is None]
        if lost:
            raise ValueError(f'valid has no entry for layer(s) {lost}: a prefix of their names, or "" for all others')
        return
    if isinstance(valid, str) or callable(valid):
        parts = {part for name in names for part in name.split(".")}
        if {"encoder", "decoder"} <= parts:
            raise ValueError(
                "an encoder and a decoder read different tokens, so one mask of valid positions cannot serve both: "
                'give each its own, as in valid={"encoder": "attention_mask", "decoder": "decoder_attention_mask"}, '
                "or None for a part that has no padding"
            )
        return
    raise TypeError(f"valid is a key, a function or a mapping from names to these, got {type(valid).__name__}")


def _prefix(valid: Mapping[str, Rule], name: str) -> str | None:
    fits = [p for p in valid if p == "" or name == p or name.startswith(p + ".")]
    return max(fits, key=len, default=None)


class ValidPositions:
    """The masks of one batch, each fitted to the inputs of its layers."""

    def __init__(self, batch: Any, valid: Valid) -> None:
        self.rules = valid if isinstance(valid, Mapping) else {"": valid}
        self.masks = {prefix: _mask(batch, rule) for prefix, rule in self.rules.items()}
        self.tokens_first = False  # seen in this pass: later inputs with one row for each token follow it

    def begin(self) -> None:
        """Begin another pass over the batch."""
        self.tokens_first = False

    def fitted(self, name: str, layer: nn.Module, x: Tensor) -> Tensor | None:
        """Return which vectors of the layer's input ``x`` count, boolean like its leading dimensions; None: all.

        Raises:
            ValueError: the mask fits the input in no way, or in two.
        """
        prefix = _prefix(self.rules, name)
        mask = None if prefix is None else self.masks[prefix]
        if mask is None:
            return None
        if isinstance(layer, nn.modules.conv._ConvNd):
            if x.ndim == 3 and x.shape[-1] == mask.shape[-1]:
                raise self._misfit(name, x, mask, "a convolution's patches mix valid positions with padding")
            return None  # an image, whose pixels no mask of tokens is about
        lead = tuple(x.shape[:-1])
        if len(lead) == 1 and lead[0] == mask.numel() and mask.ndim == 2:
            return (mask.T if self.tokens_first else mask).reshape(-1)
        if lead == tuple(mask.shape):
            if mask.ndim == 2 and lead[0] == lead[1] and not torch.equal(mask, mask.T):
                raise self._misfit(
                    name, x, mask, "it could be (batch, tokens) or (tokens, batch): cut the batches to another size"
                )
            return mask
        if mask.ndim == 2 and lead == tuple(mask.T.shape):
            self.tokens_first = True
            return mask.T
        if mask.ndim == 2 and len(lead) > 2 and (lead[0], lead[-1]) == tuple(mask.shape):
            return mask.reshape(lead[0], *[1] * (len(lead) - 2), lead[-1]).expand(lead)
        if len(lead) == 1 and lead[0] == mask.shape[0]:
            return None  # one vector for each sequence: pooled
        raise self._misfit(name, x, mask, "which of the layer's inputs are padding cannot be told")

    def _misfit(self, name: str, x: Tensor, mask: Tensor, why: str) -> ValueError:
        return ValueError(
            f"layer {name!r}: its input is {tuple(x.shape)} and the mask of valid positions {tuple(mask.shape)}; "
            f"{why}. valid may be a mapping from names to masks, with None for layers that count everything: "
            f"{{{name!r}: None}}"
        )


def _mask(batch: Any, rule: Rule) -> Tensor | None:
    if rule is None:
        return None
    if isinstance(rule, str):
        if not isinstance(batch, Mapping) or rule not in batch:
            has = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
            raise ValueError(f"valid names the entry {rule!r} of each batch, and this batch has {has}")
        mask = batch[rule]
    else:
        mask = rule(batch)
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.ndim not in (1, 2):
        given = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"the mask of valid positions must be a tensor (batch, tokens), got {given}")
    if mask.dtype != torch.bool and not ((mask == 0) | (mask == 1)).all():
        raise ValueError(
            "the mask of valid positions must be True/1 where a token counts and False/0 where it is padding; got "
            f"values from {float(mask.min()):.3g} to {float(mask.max()):.3g} (an additive attention mask? pass "
            "mask == 0)"
        )
    return mask.bool()
