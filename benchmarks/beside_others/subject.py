"""What every run compresses, calibrates on and is measured on: one model folder and one file of tokens."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mlcomp.assets import cache_dir
from mlcomp.data import python_reference, token_batches
from mlcomp.models import smollm2
from mlcomp.models.quiet import quiet_transformers

BITS, GROUP, DAMP = 4, 64, 0.01
UNIFORM = {"bits": BITS, "group_size": GROUP, "symmetric": True}  # in the library's words
CALIBRATION = {"length": 256, "count": 16}
HELD_OUT = {"length": 512, "count": 8}
TOKENS = "tokens.safetensors"


def prepare(blocks: int | None) -> Path:
    """Return a transformers folder with SmolLM2 (its first ``blocks`` blocks) and the tokens, made once."""
    folder = cache_dir() / "beside_others" / f"subject-{blocks or 'all'}"
    if (folder / TOKENS).exists():  # written last
        return folder
    model, tokenizer = smollm2()
    if blocks is not None:
        del model.model.layers[blocks:]
        model.config.num_hidden_layers = blocks
        model.config.layer_types = None
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    texts = {"calibration": CALIBRATION, "held_out": HELD_OUT}
    tokens = {name: token_batches(tokenizer, python_reference(name), **size) for name, size in texts.items()}
    save_file({name: torch.cat(batches) for name, batches in tokens.items()}, folder / TOKENS)
    return folder


def load(folder: Path) -> nn.Module:
    """Return a folder's model, in float32 and eval mode."""
    from transformers import AutoModelForCausalLM  # not where the book is built

    with quiet_transformers():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()


def load_tokenizer(folder: Path) -> Any:
    """Return a folder's tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def load_tokens(folder: Path, name: str) -> list[Tensor]:
    """Return the sequences of "calibration" or "held_out", one in each batch."""
    return list(load_file(folder / TOKENS)[name].split(1))


def linear_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the weight of each linear layer, the head's included, by name."""
    linear = (item for item in model.named_modules() if isinstance(item[1], nn.Linear))
    return {name: module.weight.detach().clone() for name, module in linear}


def weight_of(module: nn.Module, inp: int) -> Tensor:
    """Return the weight (out, inp) that a layer of whatever kind multiplies by: what it makes of unit vectors."""
    with torch.no_grad():
        return module(torch.eye(inp)).T.float()


def nbytes(folder: Path) -> int:
    """Return the bytes of the files that hold weights."""
    suffixes = (".safetensors", ".pt", ".bin")
    return sum(path.stat().st_size for path in folder.rglob("*") if path.suffix in suffixes)
