r"""One layer in the format `pack-quantized` of compressed-tensors: codes packed to words, a step a group of columns.

Notation: b bits, q code, z zero code, s step, g columns a group; $\hat w = s\,(q - z)$, see :mod:`mlcomp.quant.grid`.
Layout of a layer (out, inp), all in one safetensors file:

- `weight_packed` (out, ⌈inp·b/32⌉) int32: the codes 0 … 2^b − 1 of a row as one stream of bits, lowest bit first,
  cut into words of 32 bits;
- `weight_scale` (out, groups): the steps; one group is the strategy "channel", more are runs of g columns, "group";
- `weight_zero_point` (⌈out·b/32⌉, groups) int32: zero codes, packed down the columns; absent for symmetric grids,
  where z = 2^(b−1);
- `weight_shape` (2,) int64.

Source: compressed-tensors 0.20, compressors/pack_quantized.   Syllabus: 1.03
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int32, Integer
from torch import Tensor

from mlcomp.checks import check_codes, narrowed
from mlcomp.formats.packing import pack
from mlcomp.quant.quantized import Quantized

FORMAT = "pack-quantized"
WORD = 32  # bits


def cannot_be_packed(result: object) -> str | None:
    """Return why the format cannot hold ``result``, and the way out; None if it can."""
    if not isinstance(result, Quantized):
        return (
            f"{type(result).__name__} is no uniform grid: the format holds whole-number codes with a step for each "
            "group of columns, and no codebooks, rotations or outliers"
        )
    groups, inp = result.step.shape[1], result.codes.shape[1]
    if inp % groups:
        return f"{groups} groups do not divide its {inp} columns"
    runs = torch.arange(inp, device=result.codes.device) // (inp // groups)
    if result.group is not None and not torch.equal(result.group.to(runs), runs):
        return (
            "its groups are not consecutive columns, and compressed-tensors no longer reads a group index "
            "(weight_g_idx): pass static_groups=True to gptq, which keeps order='activation'"
        )
    zero = result.zero
    if not bool(((zero == zero.round()) & (zero >= 0) & (zero < 2**result.bits)).all()):
        return f"its zero codes are not all whole numbers from 0 to {2**result.bits - 1}"
    return None


def layer_scheme(result: Quantized) -> dict[str, object]:
    """Return the entry "weights" of the layer's config group."""
    groups, inp = result.step.shape[1], result.codes.shape[1]
    return {
        "num_bits": result.bits,
        "type": "int",
        "symmetric": _symmetric(result),
        "strategy": "group" if groups > 1 else "channel",
        "group_size": inp // groups if groups > 1 else None,
        "dynamic": False,
    }


def pack_layer(result: Quantized, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the layer's tensors by their names in the file, on the CPU.

    Args:
        result: one that :func:`cannot_be_packed` lets pass.
        dtype: of the steps, and so of the weight that is read; steps are rounded to it.
    Raises:
        ValueError: a code that does not fit into the bits, a step too large for ``dtype``.
    """
    out, inp = result.codes.shape
    codes = result.codes.cpu()
    check_codes("codes", codes, 2**result.bits - 1)
    step, zero = (part.cpu().expand(out, -1) for part in (result.step, result.zero))  # a grid per tensor has one row
    tensors = {
        "weight_packed": pack_words(codes, result.bits),
        "weight_scale": narrowed(step, dtype).contiguous(),
        "weight_shape": torch.tensor([out, inp]),
    }
    if not _symmetric(result):
        tensors["weight_zero_point"] = pack_words(zero.T.to(torch.uint8), result.bits).T.contiguous()
    return tensors


def pack_words(codes: Integer[Tensor, "rows columns"], bits: int) -> Int32[Tensor, "rows words"]:
    """Return each row as words of 32 bits: code i takes the bits i·b … i·b + b − 1 of it, its lowest bit first."""
    columns = codes.shape[1]
    padded = torch.nn.functional.pad(codes, (0, -columns % WORD))  # b words for 32 codes: rows end with a word
    # pack's bytes are little-endian, as safetensors files are.
    words = pack(padded, bits).reshape(len(codes), -1).view(torch.int32)
    return words[:, : -(-columns * bits // WORD)].contiguous()


def packed_config(schemes: Mapping[str, dict[str, Any]], others: list[str]) -> dict[str, Any]:
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


def _symmetric(result: Quantized) -> bool:
    return result.symmetric and bool((result.zero == 2 ** (result.bits - 1)).all())
