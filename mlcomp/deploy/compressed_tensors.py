r"""A compressed transformers model as a folder that other tools load, without this library.

Notation: b bits, s step, z zero code. Format: compressed-tensors, `pack-quantized`, see
:mod:`mlcomp.deploy.pack_quantized`. It is what vLLM and llm-compressor use, and what
``AutoModelForCausalLM.from_pretrained(folder)`` reads where compressed-tensors is installed.
Source: compressed-tensors 0.20, read by transformers 5.23.   Syllabus: 1.03, 2.08
"""

import copy
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mlcomp.checks import check_dtype
from mlcomp.context import isolated
from mlcomp.deploy.pack_quantized import FORMAT, cannot_be_packed, layer_scheme, pack_layer
from mlcomp.formats.bitmask import Bitmask
from mlcomp.formats.csr import CSR
from mlcomp.formats.stored import Dense, Stored, restore
from mlcomp.formats.two_four import TwoFour
from mlcomp.layerwise.weights import Replacement
from mlcomp.models.quiet import quiet_transformers
from mlcomp.resume import check_new_folder, new_folder
from mlcomp.train.lora import LoRALinear

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Pruned weights, which no tool reads in such a form today.
STAYS_DENSE = (Bitmask, CSR, TwoFour, Dense)


@dataclass(frozen=True)
class Exported:
    """What a folder holds.

    Attributes:
        folder: the folder.
        packed: names of the layers whose weights are packed.
        left: names of the other linear layers, which are stored dense.
        packed_nbytes: bytes of the packed layers' codes, steps and zero codes.
        nbytes: bytes of the files of weights, embeddings and all.
    """

    folder: Path
    packed: tuple[str, ...]
    left: tuple[str, ...]
    packed_nbytes: int
    nbytes: int


@isolated
def export_compressed_tensors(
    model: nn.Module,
    results: Mapping[str, Any],
    folder: str | os.PathLike,
    *,
    tokenizer: Any = None,
    dtype: torch.dtype | None = None,
) -> Exported:
    r"""Write a compressed model with config, generation config and tokenizer into a new folder.

    Uniform grids are packed: per row or in groups of consecutive columns, symmetric or affine, 1 to 8 bits. They may
    differ from layer to layer; layers with the same bits and group size share a config group. Every other layer is
    stored dense and stands in the list ``ignore``. Writing needs no more than the model's own library; who reads it
    needs transformers and compressed-tensors (the extra "deploy"), of 0.19 or later where bits do not divide 8.

    What the format no longer holds: `sparse-24-bitmask` and `sparse-bitmask` were removed from compressed-tensors
    after 0.14 and nothing installed today reads them. So a layer that is only pruned is stored dense, with its zeros;
    one that is pruned and quantized is packed like any other. A group index (`weight_g_idx`) was removed, too.

    Args:
        model: a transformers model with the compressed weights, as :func:`mlcomp.layerwise.compress` returns it; not
            modified.
        results: ``report.results``, or :func:`mlcomp.layerwise.load_results` of a saved model, or layer name →
            :class:`mlcomp.quant.Quantized`.
        folder: a new or an empty folder.
        tokenizer: saved beside the model, if there is one; a processor, too.
        dtype: float32, float16 or bfloat16, to which everything that is not packed is rounded, the steps included.
            None: the model's own, without rounding.
    Returns:
        The names of the packed layers and of those left, and the bytes.
    Raises:
        TypeError: not a transformers model. ValueError: before anything is written: a folder that holds something; a
            model with layers of another kind in it (packed, with adapters, quantized by others); a
            result that the format cannot hold, with the layer and the reason; a weight that is not what its result
            decodes to; without ``dtype`` a step that is no number of the model's dtype (pass ``scale_dtype`` to the
            method, or ``dtype`` here). What the format holds but transformers 5.23 does not read: affine grids of
            several kinds (one of bits and group size is read), packed layers beside a mixture of experts.
    Guarantee: without ``dtype``, every weight that is read from the folder is the model's, bit for bit. The folder is
        there whole or not at all.
    Cost: memory for the packed layers and one dense one; with ``dtype``, for all the others once more.
    """
    check_new_folder(folder)
    _check_model(model, tokenizer)
    if dtype is not None:
        check_dtype("dtype", dtype, DTYPES)
    packed = _pack(model, results, dtype)
    left = _other_linears(model, packed)
    config = _quantization_config({name: scheme for name, (scheme, _) in packed.items()}, left) if packed else None
    tensors = {name: part for name, (_, part) in packed.items()}
    state = _state(model, tensors, dtype)
    with new_folder(folder) as draft, quiet_transformers():
        written: Any = copy.copy(model)  # shallow: save_pretrained notes facts in the config that it finds
        written.config = copy.deepcopy(model.config)
        if any(model.get_submodule(name) is _head(model) for name in packed):
            written.config.tie_word_embeddings = False
        written.save_pretrained(draft, state_dict=state)
        _add_to_config(draft / "config.json", config, dtype)
        if tokenizer is not None:
            tokenizer.save_pretrained(draft)
        nbytes = sum(file.stat().st_size for file in draft.glob("*.safetensors"))
    packed_nbytes = sum(tensor.nbytes for part in tensors.values() for tensor in part.values())
    return Exported(Path(folder), tuple(packed), tuple(left), packed_nbytes, nbytes)


def _check_model(model: Any, tokenizer: Any) -> None:
    config = getattr(model, "config", None)
    if not isinstance(model, nn.Module) or config is None or not hasattr(model, "save_pretrained"):
        raise TypeError(f"model must be a transformers model, with its config, got {type(model).__name__}")
    for name, module in model.named_modules():
        if isinstance(module, Replacement | LoRALinear):
            raise ValueError(
                f"layer {name!r} is a {type(module).__name__}, which no other program knows: load the model with "
                "packed=False, merge_lora(model), or whatever gives it plain layers again"
            )
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError("model is quantized already: its config has a quantization_config")
    if hasattr(model, "peft_config") or getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError("model has adapters: merge them first, or save them on their own")
    if tokenizer is not None and not hasattr(tokenizer, "save_pretrained"):
        raise TypeError(f"tokenizer must be one of transformers, got {type(tokenizer).__name__}")


def _pack(
    model: Any, results: Mapping[str, Any], dtype: torch.dtype | None
) -> dict[str, tuple[dict[str, Any], dict[str, Tensor]]]:
    """Return name → scheme and tensors of the layers to be packed; all that cannot be are named in one error."""
    modules, packed, problems = dict(model.named_modules()), {}, {}
    for name, value in results.items():
        parts = [_restored(part) for part in (value if isinstance(value, tuple) else (value,))]
        if all(isinstance(part, STAYS_DENSE) for part in parts):
            continue
        problem = _problem(modules.get(name), parts[0], model.dtype, dtype)
        if problem is None:
            packed[name] = layer_scheme(parts[0]), pack_layer(parts[0], dtype or model.dtype)
        else:
            problems[name] = problem
    if problems:
        raise ValueError("; ".join(f"layer {name!r}: {problem}" for name, problem in problems.items()))
    experts = [n for n, p in model.named_parameters() if p.ndim == 3 and "experts" in n]
    if packed and experts:
        raise ValueError(f"{experts[0]}: beside packed layers transformers reads dense experts in one tensor no more")
    return packed


def _restored(part: Any) -> Any:
    return restore(part) if isinstance(part, Stored) else part


def _problem(module: nn.Module | None, result: Any, own: torch.dtype, dtype: torch.dtype | None) -> str | None:
    """Return why a layer cannot be packed with ``result``."""
    if not isinstance(module, nn.Linear):
        kind = "is not in the model" if module is None else f"is {type(module).__name__}"
        return f"it {kind}; compressed-tensors packs nn.Linear only"
    problem = cannot_be_packed(result)
    if problem is not None:
        return problem
    weight = module.weight.detach()
    if result.codes.shape != weight.shape:
        return f"its weight is {tuple(weight.shape)}, the result {tuple(result.codes.shape)}"
    if weight.dtype != own:
        return f"its weight is {weight.dtype} in a model of {own}, and all weights are read in one dtype"
    if not torch.equal(result.dequantize().to(weight), weight):
        return "its weight is not what the result decodes to: pass the model that compress returned with it"
    step = result.step
    if dtype is None and not torch.equal(step.to(weight.dtype).to(step.dtype), step):
        short = str(weight.dtype).removeprefix("torch.")
        return (
            f"its steps are no numbers of {short}, in which the weights are read: pass scale_dtype=torch.{short} to "
            f"the method, or dtype=torch.{short} to round them here"
        )
    return None


def _quantization_config(schemes: Mapping[str, dict[str, Any]], others: list[str]) -> dict[str, Any]:
    """Return what config.json says of the packed layers, name → scheme, and of the other linear ones."""
    members: dict[str, list[str]] = {}
    for name, scheme in schemes.items():
        members.setdefault(json.dumps(scheme), []).append(name)
    affine = not all(scheme["symmetric"] for scheme in schemes.values())
    if affine and len(members) > 1:
        told = "; ".join(f"{names[0]!r} {text}" for text, names in members.items())
        raise ValueError(f"affine grids of several kinds: transformers reads zero codes of one kind only: {told}")
    # A class is what all tools understand; names where it does not tell the layers apart.
    targets = members.values() if len(members) > 1 else [["Linear"]]
    groups = {
        f"group_{i}": {"targets": names, "weights": json.loads(text), "format": FORMAT}
        for i, (text, names) in enumerate(zip(members, targets, strict=True))
    }
    config = {
        "quant_method": "compressed-tensors",
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": others,
    }
    # transformers 5.23 makes no place for packed zero codes, unless it is told to decode while it loads.
    return config | ({"dequantize": True} if affine else {})


def _other_linears(model: nn.Module, packed: Iterable[str]) -> list[str]:
    """Return the other layers that the target "Linear" means: by the name of the class or of one it derives from."""
    linears = [n for n, m in model.named_modules() if any(c.__name__ == "Linear" for c in type(m).__mro__)]
    return [name for name in linears if name not in packed]


def _head(model: Any) -> nn.Module | None:
    return model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None


def _state(model: nn.Module, packed: Mapping[str, dict[str, Tensor]], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Return the model's state with the packed layers in it; what shares memory still does."""
    state = model.state_dict()
    for name, tensors in packed.items():
        del state[f"{name}.weight"]
        state |= {f"{name}.{part}": tensor for part, tensor in tensors.items()}
    rounded: dict[tuple, Tensor] = {}
    for name, tensor in state.items() if dtype is not None else ():
        if tensor.is_floating_point():
            place = (tensor.data_ptr(), tensor.shape, tensor.stride())
            if place not in rounded:
                rounded[place] = tensor.to(dtype)
            state[name] = rounded[place]
    return state


def _add_to_config(path: Path, quantization: dict[str, Any] | None, dtype: torch.dtype | None) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    if quantization is not None:
        config["quantization_config"] = quantization
    if dtype is not None:
        config["dtype"] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
