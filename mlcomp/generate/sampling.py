"""Texts of a small decoder, token by token, with a cache of keys and values.

Syllabus: 5.08, 5.09
"""

import torch
from jaxtyping import Int64
from torch import Tensor

from mlcomp.checks import check_codes, check_interval, check_whole
from mlcomp.context import isolated
from mlcomp.models.token_decoder import TokenDecoder
from mlcomp.modes import evaluating


@isolated
def sample(
    model: TokenDecoder,
    prompts: Int64[Tensor, "n length"],
    *,
    stop: int,
    max_new: int,
    temperature: float | int = 1.0,
    seed: int = 0,
) -> Int64[Tensor, "n new"]:
    """Return what the model writes after each prompt, token by token.

    Args:
        model: in any mode, which is kept.
        prompts: of one length; not modified.
        stop: the token that ends a text; all places after it hold it, too.
        max_new: tokens at the most.
        temperature: 0 takes the likeliest token each time, 1 the model's own probabilities.
        seed: of the draws.
    Returns:
        (n, new), new ≤ max_new: as many places as the longest text took.
    Raises:
        ValueError: prompts without a token, or with one outside the vocabulary, a negative temperature.
    """
    vocabulary = model.embedding.num_embeddings
    check_codes("prompts", prompts, vocabulary - 1)
    check_whole("stop", stop, 0, vocabulary - 1)
    check_whole("max_new", max_new, 1)
    check_whole("seed", seed, 0)
    check_interval("temperature", temperature, "[0, inf)")
    if prompts.ndim != 2 or not prompts.numel():
        raise ValueError(f"prompts must be (n, length) with at least one token each, got {tuple(prompts.shape)}")
    generator = torch.Generator().manual_seed(seed)
    ended = torch.zeros(len(prompts), dtype=torch.bool)
    new: list[Tensor] = []
    with evaluating(model):
        logits, past = model.extend(prompts.long(), None)
        while len(new) < max_new and not bool(ended.all()):
            last = logits[:, -1].double()
            if temperature == 0:
                token = last.argmax(-1)
            else:
                token = torch.multinomial((last / temperature).softmax(-1), 1, generator=generator)[:, 0]
            token = token.masked_fill(ended, stop)
            ended |= token == stop
            new.append(token)
            if len(new) < max_new and not bool(ended.all()):
                logits, past = model.extend(token[:, None], past)
    return torch.stack(new, 1)
