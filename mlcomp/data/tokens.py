"""Text cut into equal sequences of tokens, for calibration and perplexity."""

from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from mlcomp.checks import check_whole
from mlcomp.context import isolated


@isolated
def token_batches(
    tokenizer: Any, text: str, *, length: int = 256, count: int = 16, batch_size: int = 4
) -> list[Int64[Tensor, "_ _"]]:
    """Return the first ``count`` sequences of ``length`` tokens of ``text``, as batches of ``batch_size``.

    The sequences follow one another without overlap; no special tokens are added.

    Args:
        tokenizer: a Hugging Face tokenizer.
        text: long enough for count · length tokens.
        length: tokens of a sequence.
        count: sequences in all; the last batch may be smaller.
        batch_size: sequences of a batch.
    Raises:
        ValueError: a size below 1, or a text that is too short.
    """
    for name, value in (("length", length), ("count", count), ("batch_size", batch_size)):
        check_whole(name, value, 1)
    # verbose=False: without it the tokenizer warns that the text is longer than the model's window, which we cut.
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) < count * length:
        raise ValueError(f"the text has {len(ids)} tokens, fewer than {count} sequences of {length}")
    return list(torch.tensor(ids[: count * length], dtype=torch.int64).reshape(count, length).split(batch_size))
