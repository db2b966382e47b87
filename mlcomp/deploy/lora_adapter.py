r"""LoRA corrections in the folder that PEFT reads and writes: adapter_config.json and adapter_model.safetensors.

Notation: as in :mod:`mlcomp.train.lora`. A tensor's name is "base_model.model." and the layer's name, then
"lora_A.weight" (r, inp) or "lora_B.weight" (out, r).
Source: PEFT 0.21, LoraConfig and save_pretrained; Hu et al. 2022, arXiv:2106.09685.   Syllabus: 4.08
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mlcomp.context import isolated
from mlcomp.resume import new_folder
from mlcomp.train.lora import add_lora, choose_adaptable, lora_layers

CONFIG, TENSORS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
# Settings of PEFT that change what is computed; what is not listed says how training began, or is of no account.
UNKNOWN_HERE = (
    "alora_invocation_tokens alpha_pattern arrow_config fan_in_fan_out kasa_config layer_replication lora_bias "
    "modules_to_save monteclora_config rank_pattern target_parameters trainable_token_indices use_bdlora use_dora "
    "use_qalora use_rslora velora_config"
).split()


@isolated
def save_lora_adapter(model: nn.Module, folder: str | os.PathLike, *, base_model: str | None = None) -> Path:
    """Write the corrections of a model, without the model, into a new folder.

    ``peft.PeftModel.from_pretrained(base, folder)`` puts them on the base model again; so do vLLM and others.

    Args:
        model: with corrections (:func:`mlcomp.train.add_lora`); not modified.
        folder: a new or an empty folder; it is there whole or not at all.
        base_model: the name or folder of the model without corrections, which PEFT notes. None: not said.
    Returns:
        The folder.
    Raises:
        ValueError: before anything is written: no corrections, corrections of several ranks, scales or dropouts, a
            folder that holds something.
    Guarantee: PEFT computes the same outputs, up to the order of sums; A and B come back bit for bit.
    """
    layers = lora_layers(model)
    if not layers:
        raise ValueError("the model has no corrections: add_lora(model, …) gives it some")
    settings = {(layer.rank, layer.alpha, layer.dropout.p) for layer in layers.values()}
    if len(settings) > 1:
        raise ValueError(f"one adapter has one rank, alpha and dropout, got {sorted(settings)}")
    ((rank, alpha, dropout),) = settings
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if type(model).__name__.endswith("ForCausalLM") else None,
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "lora_dropout": dropout,
        "target_modules": _targets(model, list(layers)),
        "bias": "none",
        "inference_mode": True,
    }
    tensors = {f"{PREFIX}{name}.lora_A.weight": layer.lora_A for name, layer in layers.items()}
    tensors |= {f"{PREFIX}{name}.lora_B.weight": layer.lora_B for name, layer in layers.items()}
    with new_folder(folder) as draft:
        held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(held, draft / TENSORS, {"format": "pt"})
        (draft / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return Path(folder)


def _targets(model: nn.Module, names: list[str]) -> list[str] | str:
    """Return what makes PEFT choose these layers and no other: last parts of names if they do, else a pattern."""
    ends = sorted({name.rpartition(".")[2] for name in names})
    meant = [n for n, _ in model.named_modules() if n.rpartition(".")[2] in ends]
    return ends if sorted(meant) == sorted(names) else "|".join(re.escape(name) for name in names)


@isolated
def load_lora_adapter(model: nn.Module, folder: str | os.PathLike) -> nn.Module:
    """Freeze ``model`` and give it the corrections of a folder, in place, as :func:`mlcomp.train.add_lora` does.

    Args:
        model: the base model, dense or packed.
        folder: written by :func:`save_lora_adapter`, or by PEFT for plain LoRA on linear layers.
    Raises:
        ValueError: before anything is changed: no adapter there, a damaged one, one of another kind (the setting is
            named), layers that the model does not have or of other sizes; a model that has corrections already.
    Guarantee: A and B are those of the folder, bit for bit (widened to float32).
    """
    config, tensors = _read(Path(folder))
    pairs = _pairs(tensors)
    chosen = choose_adaptable(model, list(pairs))
    rank = config["r"]
    for name, layer in chosen.items():
        want = {"lora_A": (rank, layer.in_features), "lora_B": (layer.out_features, rank)}
        for part, shape in want.items():
            if tuple(pairs[name][part].shape) != shape:
                raise ValueError(f"{part} of layer {name!r} is {tuple(pairs[name][part].shape)}, and must be {shape}")
    add_lora(model, list(pairs), rank=rank, alpha=config["lora_alpha"], dropout=config.get("lora_dropout", 0.0))
    with torch.no_grad():
        for name, layer in lora_layers(model).items():
            layer.lora_A.copy_(pairs[name]["lora_A"])
            layer.lora_B.copy_(pairs[name]["lora_B"])
    return model


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / TENSORS)
    except (FileNotFoundError, NotADirectoryError) as problem:
        raise ValueError(f"{folder} holds no adapter: there is no {CONFIG} with {TENSORS}") from problem
    except (ValueError, SafetensorError) as problem:
        raise ValueError(f"the adapter in {folder} is damaged: {problem}") from problem
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ValueError(f"{folder / CONFIG} is no LoRA adapter's")
    set_to = {key: config[key] for key in UNKNOWN_HERE if config.get(key)}
    if config.get("bias", "none") != "none":
        set_to["bias"] = config["bias"]
    if set_to:
        raise ValueError(f"the adapter in {folder} is no plain LoRA: {set_to}")
    if not isinstance(config.get("r"), int) or not isinstance(config.get("lora_alpha"), int | float):
        raise ValueError(f"{folder / CONFIG} must say r and lora_alpha")
    return config, tensors


def _pairs(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return layer → its A and B."""
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        found = re.fullmatch(rf"{re.escape(PREFIX)}(.+)\.(lora_[AB])\.weight", key)
        if found is None:
            raise ValueError(f"the adapter holds {key!r}, which is no part of plain LoRA on a linear layer")
        pairs.setdefault(found[1], {})[found[2]] = tensor
    for name, parts in pairs.items():
        if len(parts) < 2:
            raise ValueError(f"the adapter holds only {next(iter(parts))} of layer {name!r}")
    return pairs
