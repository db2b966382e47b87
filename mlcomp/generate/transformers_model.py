r"""A causal language model of transformers: many texts at once, each drawn with random numbers of its own.

Notation: $z$ the logits, $T$ the temperature, $p = \mathrm{softmax}(z / T)$. A token is drawn by inverting the
cumulative distribution: the first token $k$ with $\sum_{i \le k} p_i > u$, where $u$ is uniform.   Syllabus: 4.18
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mlcomp.context import isolated_run
from mlcomp.generate.language_model import Reply, Sampling, check_prompts
from mlcomp.models.smollm2 import smollm2
from mlcomp.modes import evaluating, home
from mlcomp.resume import hash_model, hash_values

HEAD = 1024  # so many of the likeliest tokens mostly reach top_p, and are found sooner than all are sorted


class TransformersModel:
    """SmolLM2, or another model of transformers.

    Args:
        model: a causal language model; the mode of every module is kept. None: SmolLM2, and its tokenizer.
        tokenizer: its tokenizer.
    Raises:
        ValueError: a model without a tokenizer, or the other way round.
    """

    def __init__(self, model: nn.Module | None = None, tokenizer: Any = None):
        if (model is None) != (tokenizer is None):
            raise ValueError("give both a model and its tokenizer, or neither")
        self.model, self.tokenizer = smollm2() if model is None else (model, tokenizer)

    @cached_property
    def identity(self) -> str:
        """A hash of the weights, of what the model computes with them, and of the tokenizer; made once."""
        words = self.tokenizer.backend_tokenizer.to_str()
        return hash_values((hash_model(self.model), words, self.tokenizer.chat_template))

    @isolated_run
    def generate(self, prompts: Sequence[str], *, seeds: Sequence[int], sampling: Sampling) -> list[Reply]:
        """Return one reply for each prompt.

        Args:
            prompts: all of them make one batch: hand over as many as memory holds.
            seeds: one for each.
            sampling: how to draw.
        Raises:
            ValueError: no prompts, an empty one, another number of seeds.
        Guarantee: the same batch gives the same replies, bit for bit, on the same machine and number of threads. In
            another batch a reply is the same up to rounding: a token changes where u lies within rounding error of
            a step of the cumulative distribution.
        Cost: one forward pass over the prompts, and one for each token of the longest reply.
        """
        check_prompts(prompts, seeds)
        tokens, mask = self._encoded(prompts, chat=sampling.chat)
        ends = self._ends()
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        drawn: list[list[int]] = [[] for _ in prompts]
        replies: list[Reply | None] = [None] * len(prompts)
        cache = None
        with evaluating(self.model):
            for _ in range(sampling.max_tokens):
                places = (mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
                out = self.model(
                    input_ids=tokens, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True
                )
                cache = out.past_key_values
                uniforms = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators])
                tokens = choose(out.logits[:, -1], uniforms, sampling)[:, None]
                mask = torch.cat([mask, torch.ones_like(tokens)], 1)
                for row, token in enumerate(tokens[:, 0].tolist()):
                    if replies[row] is None:
                        drawn[row].append(token)
                        replies[row] = self._ended(drawn[row], ends, sampling.stop)
                if None not in replies:
                    break
        rest = [Reply(self._text(row), False) for row in drawn]
        return [reply or cut for reply, cut in zip(replies, rest, strict=True)]

    def _encoded(self, prompts: Sequence[str], *, chat: bool) -> tuple[Tensor, Tensor]:
        """Return tokens and mask, padded on the left: what is drawn stands next to the prompt."""
        if chat:
            said = [[{"role": "user", "content": prompt}] for prompt in prompts]
            prompts = [
                self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
                for turns in said
            ]
        rows = [self.tokenizer(prompt, add_special_tokens=not chat)["input_ids"] for prompt in prompts]
        width = max(map(len, rows))
        tokens = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        device = home(self.model)
        return tokens.to(device), mask.to(device)

    def _ends(self) -> set[int]:
        settings = getattr(self.model, "generation_config", None)
        ends = getattr(settings, "eos_token_id", None)
        listed = ends if isinstance(ends, list) else [ends]
        return {end for end in (*listed, self.tokenizer.eos_token_id) if end is not None}

    def _ended(self, drawn: list[int], ends: set[int], stop: Sequence[str]) -> Reply | None:
        """Return the reply if the last token ends it."""
        if drawn[-1] in ends:
            return Reply(self._text(drawn[:-1]), True)
        if stop:
            text = self._text(drawn)
            found = [text.index(mark) for mark in stop if mark in text]
            if found:
                return Reply(text[: min(found)], True)
        return None

    def _text(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)


def choose(
    logits: Float[Tensor, "n words"], uniforms: Float[Tensor, " n"], sampling: Sampling
) -> Int64[Tensor, " n"]:
    """Return one token of each row, by the row's number in [0, 1)."""
    if sampling.temperature == 0:
        return logits.argmax(1)
    p, order = (logits.double() / sampling.temperature).softmax(1), None
    if sampling.top_p < 1:
        p, order = p.topk(min(HEAD, p.shape[1]), dim=1)
        if bool((p.sum(1) < sampling.top_p).any()):
            p, order = (logits.double() / sampling.temperature).softmax(1).sort(dim=1, descending=True)
        # What stays is the least number of tokens that reach top_p: the mass before each of them lies below it.
        p = p * (p.cumsum(1) - p < sampling.top_p)
    sums = p.cumsum(1)
    goal = uniforms.to(sums.device)[:, None] * sums[:, -1:]
    place = torch.searchsorted(sums, goal, right=True).clamp(max=sums.shape[1] - 1)
    return (place if order is None else order.gather(1, place))[:, 0]
