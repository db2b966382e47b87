r"""A compressed transformers model as a folder that other tools load, without this library.

Notation: b bits, s step, z zero code. Format: compressed-tensors, `pack-quantized`, see
:mod:`mlcomp.deploy.pack_quantized`. It is what vLLM and llm-compressor use, and what
``AutoModelForCausalLM.from_pretrained(folder)`` reads where compressed-tensors is installed. For readers of the time
of transformers 4, 2:4 layers can be written as `sparse-24-bitmask`, see :mod:`mlcomp.deploy.sparse_24_bitmask`.
Source: compressed-tensors 0.20, read by transformers 5.23; 0.14 and 4.57.   Syllabus: 1.03, 2.08, 3.06
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

from mlcomp.checks import check_choice, check_dtype
from mlcomp.context import isolated
from mlcomp.deploy.pack_quantized import cannot_be_packed, layer_scheme, pack_layer, packed_config
from mlcomp.deploy.sparse_24_bitmask import FORMAT as SPARSE
from mlcomp.deploy.sparse_24_bitmask import (
    bitmask_layer,
    in_words_of_transformers_4,
    say_it_to_transformers_4,
    two_four_of,
    with_sparse_layers,
)
from mlcomp.formats.bitmask import Bitmask
from mlcomp.formats.csr import CSR
from mlcomp.formats.stored import Dense, Stored, restore
from mlcomp.formats.two_four import TwoFour
from mlcomp.layerwise.weights import Replacement
from mlcomp.models.quiet import quiet_transformers
from mlcomp.resume import check_new_folder, new_folder
from mlcomp.train.lora import LoRALinear

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TWO_FOUR = ("dense", SPARSE)
# Pruned weights, which no tool reads in such a form today.
PRUNED = (Bitmask, CSR, TwoFour, Dense)


@dataclass(frozen=True)
class Exported:
    """What a folder holds.

    Attributes:
        folder: the folder.
        packed: names of the layers whose weights are packed.
        left: names of the other linear layers, which are stored dense.
        sparse: names of the layers that are stored as `sparse-24-bitmask`.
        packed_nbytes: bytes of the packed layers' codes, steps and zero codes.
        nbytes: bytes of the files of weights, embeddings and all.
    """

    folder: Path
    packed: tuple[str, ...]
    left: tuple[str, ...]
    sparse: tuple[str, ...]
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
    two_four: str = "dense",
) -> Exported:
    r"""Write a compressed model with config, generation config and tokenizer into a new folder.

    Uniform grids are packed: per row or in groups of consecutive columns, symmetric or affine, 1 to 8 bits. They may
    differ from layer to layer; layers with the same bits and group size share a config group. Every other layer is
    stored dense and stands in the list ``ignore``. Writing needs no more than the model's own library; who reads it
    needs transformers and compressed-tensors (the extra "deploy"), of 0.19 or later where bits do not divide 8.

    What the format no longer holds: `sparse-24-bitmask` and `sparse-bitmask` were removed from compressed-tensors
    after 0.14. So a layer that is only pruned is stored dense, with its zeros; one that is pruned and quantized is
    packed like any other. A group index (`weight_g_idx`) was removed, too.

    For readers that have stayed there, ``two_four="sparse-24-bitmask"`` stores layers that are pruned 2:4 without
    their zeros, beside packed layers or alone. transformers 4.57 with compressed-tensors 0.14 reads such a folder
    (in float16, unless ``from_pretrained`` is given a dtype), and so should vLLM of that time, which was not tried.
    compressed-tensors 0.15 and later refuse it: by themselves they would fill these layers with random numbers and
    warn, so config.json has a group that makes them raise an error. Config and tokenizer are in the words of
    transformers 4, too.

    Args:
        model: a transformers model with the compressed weights, as :func:`mlcomp.layerwise.compress` returns it; not
            modified.
        results: ``report.results``, or :func:`mlcomp.layerwise.load_results` of a saved model, or layer name →
            :class:`mlcomp.quant.Quantized`.
        folder: a new or an empty folder.
        tokenizer: saved beside the model, if there is one; a processor, too.
        dtype: float32, float16 or bfloat16, to which everything that is not packed is rounded, the steps included.
            None: the model's own, without rounding.
        two_four: "dense", or "sparse-24-bitmask" for ``nn.Linear`` layers that are not quantized and have at most two
            non-zeros in each block of four inputs, whichever form their results have, if any. Layers that are pruned
            otherwise stay dense.
    Returns:
        The names of the packed layers, of the sparse ones and of those left, and the bytes.
    Raises:
        TypeError: not a transformers model. ValueError: before anything is written: a folder that holds something; a
            model with layers of another kind in it (packed, with adapters, quantized by others); a
            result that the format cannot hold, with the layer and the reason; a weight that is not what its result
            decodes to; without ``dtype`` a step that is no number of the model's dtype (pass ``scale_dtype`` to the
            method, or ``dtype`` here); for ``two_four="sparse-24-bitmask"`` no 2:4 layer, packed layers beside them
            whose bits do not divide 8, or a model that has no words in transformers 4. What the format holds but
            transformers 5.23 does not read: affine grids of several kinds (one of bits and group size is read),
            packed layers beside a mixture of experts.
    Guarantee: without ``dtype``, every weight that is read from the folder is the model's, bit for bit (zeros that
        are left out come back as +0). The folder is there whole or not at all.
    Cost: memory for the packed and sparse layers and one dense one; with ``dtype``, for all the others once more.
    """
    check_new_folder(folder)
    _check_model(model, tokenizer)
    if dtype is not None:
        check_dtype("dtype", dtype, DTYPES)
    check_choice("two_four", two_four, TWO_FOUR)
    packed = _pack(model, results, dtype)
    sparse = _sparse(model, results) if two_four == SPARSE else {}
    others = _other_linears(model, packed)
    left = [name for name in others if name not in sparse]
    config = packed_config({name: scheme for name, (scheme, _) in packed.items()}, others) if packed else None
    if sparse:
        config = with_sparse_layers(config, list(sparse), [*packed, *left], model)
    tensors = {name: part for name, (_, part) in packed.items()}
    state = _state(model, tensors | sparse, dtype)
    with new_folder(folder) as draft, quiet_transformers():
        written: Any = copy.copy(model)  # shallow: save_pretrained notes facts in the config that it finds
        written.config = copy.deepcopy(model.config)
        if any(model.get_submodule(name) is _head(model) for name in [*packed, *sparse]):
            written.config.tie_word_embeddings = False
        written.save_pretrained(draft, state_dict=state)
        _add_to_config(draft / "config.json", config, dtype)
        if tokenizer is not None:
            tokenizer.save_pretrained(draft)
        if sparse:
            say_it_to_transformers_4(draft)
        nbytes = sum(file.stat().st_size for file in draft.glob("*.safetensors"))
    packed_nbytes = sum(tensor.nbytes for part in tensors.values() for tensor in part.values())
    return Exported(Path(folder), tuple(packed), tuple(left), tuple(sparse), packed_nbytes, nbytes)


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
        parts = _parts(value)
        if _pruned(parts):
            continue
        problem = _problem(modules.get(name), parts[0], model.dtype, dtype)
        if problem is None:
            packed[name] = layer_scheme(parts[0]), pack_layer(parts[0], dtype or model.dtype)
        else:
            problems[name] = problem
    _raise(problems)
    experts = [n for n, p in model.named_parameters() if p.ndim == 3 and "experts" in n]
    if packed and experts:
        raise ValueError(f"{experts[0]}: beside packed layers transformers reads dense experts in one tensor no more")
    return packed


def _sparse(model: Any, results: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Return name → tensors of the linear layers that are 2:4 sparse, and not quantized."""
    sparse, problems = {}, {}
    for name, module in model.named_modules():
        parts = _parts(results.get(name, ()))  # none where a method returned the weight itself
        if not _pruned(parts) or not isinstance(module, nn.Linear):
            continue
        weight = module.weight.detach()
        problem = _mismatch(weight, parts[0].dequantize()) if parts else None
        if problem is not None:
            problems[name] = problem
        elif (slots := two_four_of(weight)) is not None:
            sparse[name] = bitmask_layer(slots)
    _raise(problems)
    if not sparse:
        raise ValueError(
            "two_four='sparse-24-bitmask' needs a layer that is pruned 2:4 and not quantized, and none is: pass "
            "pattern=(2, 4) to the method (sparsity=0.5 alone leaves zeros anywhere), or two_four='dense'"
        )
    in_words_of_transformers_4(model.config.to_dict())  # raises where there are none
    return sparse


def _parts(value: Any) -> list[Any]:
    """Return a layer's results: those of several matrices are a tuple, and some wait in their stored form."""
    parts = value if isinstance(value, tuple) else (value,)
    return [restore(part) if isinstance(part, Stored) else part for part in parts]


def _pruned(parts: list[Any]) -> bool:
    return all(isinstance(part, PRUNED) for part in parts)


def _raise(problems: Mapping[str, str]) -> None:
    if problems:
        raise ValueError("; ".join(f"layer {name!r}: {problem}" for name, problem in problems.items()))


def _problem(module: nn.Module | None, result: Any, own: torch.dtype, dtype: torch.dtype | None) -> str | None:
    """Return why a layer cannot be packed with ``result``."""
    if not isinstance(module, nn.Linear):
        kind = "is not in the model" if module is None else f"is {type(module).__name__}"
        return f"it {kind}; compressed-tensors packs nn.Linear only"
    problem = cannot_be_packed(result)
    if problem is not None:
        return problem
    weight = module.weight.detach()
    if weight.dtype != own:
        return f"its weight is {weight.dtype} in a model of {own}, and all weights are read in one dtype"
    problem = _mismatch(weight, result.dequantize())
    if problem is not None:
        return problem
    step = result.step
    if dtype is None and not torch.equal(step.to(weight.dtype).to(step.dtype), step):
        short = str(weight.dtype).removeprefix("torch.")
        return (
            f"its steps are no numbers of {short}, in which the weights are read: pass scale_dtype=torch.{short} to "
            f"the method, or dtype=torch.{short} to round them here"
        )
    return None


def _mismatch(weight: Tensor, decoded: Tensor) -> str | None:
    """Return why a layer's weight is not what its result decodes to."""
    if decoded.shape != weight.shape:
        return f"its weight is {tuple(weight.shape)}, the result {tuple(decoded.shape)}"
    if not torch.equal(decoded.to(weight), weight):
        return "its weight is not what the result decodes to: pass the model that compress returned with it"
    return None


def _other_linears(model: nn.Module, packed: Iterable[str]) -> list[str]:
    """Return the other layers that the target "Linear" means: by the name of the class or of one it derives from."""
    linears = [n for n, m in model.named_modules() if any(c.__name__ == "Linear" for c in type(m).__mro__)]
    return [name for name in linears if name not in packed]


def _head(model: Any) -> nn.Module | None:
    return model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None


def _state(model: nn.Module, layers: Mapping[str, dict[str, Tensor]], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Return the model's state with packed and sparse layers in it; what shares memory still does."""
    state = model.state_dict()
    for name, tensors in layers.items():
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
