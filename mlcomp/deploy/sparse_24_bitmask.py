r"""One layer in the format `sparse-24-bitmask` of compressed-tensors: two values of every four, and a bit a place.

Notation: W weight (out, inp) with at most two non-zeros in each block of four inputs of a row.
Layout of a layer (out, inp), all in one safetensors file, in place of its `weight`:

- `compressed` (out, inp/2): the two values of each block, in the order of their inputs;
- `bitmask` (out, ⌈inp/8⌉) uint8: bit i mod 8 of byte ⌊i/8⌋ of a row, counted from the lowest, is 1 where input i has
  a slot: exactly two of each block, also where fewer values are not zero;
- `shape` (2, 1) int64: out, then inp.

In 16 bits that is 9/16 of dense, as for :class:`mlcomp.formats.TwoFour`. Its readers are of the time of transformers
4, so the rest of the folder has to be in that version's words, too.
Source: compressed-tensors 0.14, compressors/sparse_compressors.   Syllabus: 3.06
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mlcomp.formats.packing import pack
from mlcomp.formats.two_four import TwoFour

FORMAT = "sparse-24-bitmask"
# A group without layers. Later versions know nothing of the tensors above: they would fill these layers with random
# numbers, and warn. But they take no format in this spelling, which readers until 0.14 do. So they raise an error,
# which quotes the group's name.
GUARD = "sparse-24-bitmask is read by compressed-tensors until 0.14, with transformers 4"
GUARDED = FORMAT.replace("-", "_")


def two_four_of(weight: Float[Tensor, "out inp"]) -> TwoFour | None:
    """Return the two slots of each block of four, on the CPU; None if the weight is not 2:4 sparse."""
    try:
        return TwoFour.from_dense(weight.cpu())
    except ValueError:
        return None


def bitmask_layer(weight: TwoFour) -> dict[str, Tensor]:
    """Return the layer's tensors by their names in the file."""
    out, inp = weight.shape
    slots = torch.zeros(out, inp + -inp % 8, dtype=torch.uint8).scatter(1, weight.columns, 1)  # rows end with a byte
    return {
        "compressed": weight.values,
        "bitmask": pack(slots, 1).reshape(out, -1),
        "shape": torch.tensor([[out], [inp]]),
    }


def with_sparse_layers(
    config: dict[str, Any] | None, layers: Sequence[str], others: Sequence[str], model: nn.Module
) -> dict[str, Any]:
    """Return what config.json says of 2:4 layers and of the other linear ones, beside what it says of packed ones.

    Raises:
        ValueError: packed layers whose bits do not divide 8: readers until 0.14 lay these out in another way.
    """
    config = config or {"quant_method": "compressed-tensors"}
    zeros, count = (sum(n) for n in zip(*((int((p == 0).sum()), p.numel()) for p in model.parameters()), strict=True))
    sparsity = {
        "format": FORMAT,
        "sparsity_structure": "2:4",
        "global_sparsity": zeros / count,
        "targets": list(layers),  # by name: vLLM looks at `ignore` for classes only
        "ignore": list(others),
    }
    groups = config.get("config_groups", {})
    for bits in (group["weights"]["num_bits"] for group in groups.values()):
        if 8 % bits:
            raise ValueError(
                f"compressed-tensors 0.14 packs {bits} bits in another way: beside 2:4 layers take 4 or 8"
            )
    groups |= {GUARD: {"targets": [], "format": GUARDED}}
    return config | {"config_groups": groups, "sparsity_config": sparsity}


def in_words_of_transformers_4(config: dict[Any, Any]) -> dict[Any, Any]:
    """Return a model's config with its rotary positions under the names of transformers 4, too.

    That version would not find ``rope_parameters``, and run with a base of 10 000 whatever the model's is.

    Raises:
        ValueError: layers of several kinds with positions of their own, for which each model had names of its own.
    """
    config = {k: in_words_of_transformers_4(v) if isinstance(v, dict) else v for k, v in config.items()}
    rope = config.get("rope_parameters")
    if not rope:
        return config
    if "rope_theta" not in rope:
        kinds = ", ".join(rope)
        raise ValueError(
            f"transformers 4 has no common words for the rotary positions of {kinds}: use two_four='dense'"
        )
    scaling = {k: v for k, v in rope.items() if k not in ("rope_theta", "partial_rotary_factor")}
    moved = {k: rope[k] for k in ("rope_theta", "partial_rotary_factor") if k in rope}
    return config | moved | {"rope_scaling": scaling if scaling.get("rope_type", "default") != "default" else None}


def say_it_to_transformers_4(folder: Path) -> None:
    """Write config.json in its words, and the tokenizer's class under its name for it."""
    config = folder / "config.json"
    _write(config, in_words_of_transformers_4(_read(config)))
    tokenizer = folder / "tokenizer_config.json"
    if tokenizer.exists() and (told := _read(tokenizer)).get("tokenizer_class") == "TokenizersBackend":
        _write(tokenizer, told | {"tokenizer_class": "PreTrainedTokenizerFast"})


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _write(path: Path, facts: dict[str, Any]) -> None:
    path.write_text(json.dumps(facts, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
