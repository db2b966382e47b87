"""The model that every method compresses, what the methods see of it, and how good a compressed copy is.

The model is MiniLM, a sentence encoder in float32, of which the 36 linear layers of the encoder are compressed.
Layer-wise methods see the Hessian of the inputs that the *dense* model gives each layer, on 128 sentences of the
Python reference; methods that run blocks or train the network see 512 stretches of 64 tokens of the same text.
Quality is measured on 128 sentences of a text that is in neither: the mean cosine with the dense model's vectors, and
how many of the ten sentences nearest to each sentence stay among its ten nearest.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mlcomp.data import python_reference, python_sentences, token_batches
from mlcomp.layerwise import collect_hessians
from mlcomp.metrics import embedding_similarity
from mlcomp.models import embed, minilm

SENTENCES = 128
STRETCHES, TOKENS = 512, 64


@dataclass(frozen=True)
class Subject:
    """See the module.

    Attributes:
        model: not modified.
        hessians: name of each layer to compress → (inp, inp).
        hessian_seconds: what it took to collect them.
        inputs: (samples, …), for methods that run the network or its blocks.
        output: (model, batch of inputs) → the outputs that should stay.
        blocks: names of the parts, in order, that hold the layers.
        quality: compressed model → (similarity, recall at 10).
    """

    model: nn.Module
    hessians: Mapping[str, Float[Tensor, "inp inp"]]
    hessian_seconds: float
    inputs: Tensor
    output: Callable[[nn.Module, Tensor], Tensor]
    blocks: tuple[str, ...]
    quality: Callable[[nn.Module], tuple[float, float]]


def minilm_subject() -> Subject:
    """Return MiniLM with its Hessians, its text and the quality measure described above."""
    model, tokenizer = minilm()
    names = [name for name, m in model.named_modules() if name.startswith("encoder.") and isinstance(m, nn.Linear)]
    text = python_sentences("calibration", count=SENTENCES)
    start = time.process_time()
    batches = [
        dict(tokenizer(text[i : i + 32], padding=True, truncation=True, max_length=256, return_tensors="pt"))
        for i in range(0, SENTENCES, 32)
    ]
    hessians = collect_hessians(model, batches, layers=names, valid="attention_mask")
    seconds = time.process_time() - start
    stretches = token_batches(tokenizer, python_reference(), length=TOKENS, count=STRETCHES)
    held_out = python_sentences("held_out", count=SENTENCES)
    reference = embed(model, tokenizer, held_out)

    def quality(candidate: nn.Module) -> tuple[float, float]:
        vectors = embed(candidate, tokenizer, held_out)
        return embedding_similarity(reference, vectors), recall_of_neighbours(reference, vectors)

    def output(network: nn.Module, ids: Tensor) -> Tensor:
        return network(ids).last_hidden_state

    blocks = tuple(dict.fromkeys(".".join(name.split(".")[:3]) for name in names))  # encoder.layer.0, …
    return Subject(model, hessians, seconds, torch.cat(stretches), output, blocks, quality)


def recall_of_neighbours(
    reference: Float[Tensor, "n dim"], vectors: Float[Tensor, "n dim"], count: int = 10
) -> float:
    """Return the share of each vector's ``count`` nearest by cosine (itself left out) that stay so near."""
    nearest = []
    for x in (reference, vectors):
        unit = nn.functional.normalize(x.double(), dim=1)
        cosine = (unit @ unit.T).fill_diagonal_(-2)
        nearest.append(torch.zeros_like(cosine).scatter_(1, cosine.topk(count, dim=1).indices, 1))
    return float((nearest[0] * nearest[1]).sum() / (count * len(reference)))
