"""Models small enough for a test: a random LLaMA over single characters, and one that makes its answers up."""

import string
from collections.abc import Sequence

import pytest
import torch

from mlcomp.generate import Reply, Sampling, TransformersModel
from mlcomp.resume import hash_values

LETTERS = [*string.ascii_letters, *string.digits, " ", ".", "\n"]


def tiny_model(seed: int = 0, *, chat: str | None = None) -> TransformersModel:
    """Return a LLaMA of two layers with random weights; its tokens are letters, and <end> ends a text."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = {letter: number for number, letter in enumerate([*LETTERS, "<end>"])}
    plain = Tokenizer(models.WordLevel(words, unk_token="."))
    plain.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    plain.decoder = decoders.Fuse()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<end>", unk_token=".")
    tokenizer.chat_template = chat
    config = transformers.LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=words["<end>"],
        bos_token_id=None,
        initializer_range=0.5,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.LlamaForCausalLM(config)
    return TransformersModel(model, tokenizer)


class MadeUp:
    """A model whose replies are numbered lists of words that hang on prompt and seed; it counts its calls.

    Args:
        name: its identity.
        fail_at: the number of the call, from 1, that raises; None: none does.
    """

    def __init__(self, name: str = "made up", *, fail_at: int | None = None):
        self.identity, self.fail_at, self.calls = hash_values(name), fail_at, 0

    def generate(self, prompts: Sequence[str], *, seeds: Sequence[int], sampling: Sampling) -> list[Reply]:
        """Return four items a reply."""
        self.calls += 1
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        return [
            self._reply(hash_values((prompt, seed, self.identity)))
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]

    @staticmethod
    def _reply(code: str) -> Reply:
        items = [" ".join(code[i + j : i + j + 4] for j in range(0, 20, 4)) for i in range(0, 40, 10)]
        return Reply("\n".join(f"{n}. {item}" for n, item in enumerate(items, 9))[3:], True)
