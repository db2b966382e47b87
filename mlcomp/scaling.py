r"""Bit-level scaling laws: how well a family of models of growing size does at equal total bits.

Notation: N bits that a model takes in storage, k bits per parameter, B block size, L held-out loss [bits per byte].
Source: Dettmers & Zettlemoyer 2022, arXiv:2212.09720, sections 2–5.   Syllabus: 1.12
"""

import math

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.nn import functional as F


@torch.no_grad()
def bits_per_byte(
    model: nn.Module, text: Int64[Tensor, " length"], *, context: int = 256, batch_size: int = 16
) -> float:
    r"""Return $-\frac1n\sum \log_2 p(x_t \mid x_{<t})$ of a byte-level model on ``text``; the mode is kept.

    The text is cut into windows of ``context`` predicted bytes. Each window stands alone, and starts with the byte
    before its first prediction; what is left over at the end is not counted.

    Args:
        model: (n, length) bytes → (n, length, 256) logits of the next byte.
        text: bytes as whole numbers 0 … 255, more than ``context`` of them.
        context: bytes predicted in a window.
        batch_size: windows at a time; it changes the memory, not the result.
    Raises:
        ValueError: a text that is not longer than one window, or a size below 1.
    """
    for name, value in (("context", context), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive whole number, got {value!r}")
    if len(text) <= context:
        raise ValueError(f"the text must be longer than one window of {context} bytes, got {len(text)}")
    training, device = model.training, next(model.parameters()).device
    model.eval()
    windows = text.unfold(0, context + 1, context)
    total = 0.0
    for batch in windows.to(device).split(batch_size):
        logits = model(batch[:, :-1]).flatten(0, 1)
        total += float(F.cross_entropy(logits.float(), batch[:, 1:].flatten(), reduction="sum"))
    model.train(training)
    return total / math.log(2) / (len(windows) * context)
