"""A layer's packed results: as tensors of a file and back, and as the weight that they stand for.

A layer has one result for each of its groups, or one for all its rows.   Syllabus: 2.01
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mlcomp.formats.stored import Stored, restore
from mlcomp.layerwise.matrix import Layer, weight_rows

CHECKED = 2**15  # weights that are decoded at once to see whether they can be: 128 kB in float32


def pack_parts(parts: Sequence[Stored], prefix: str = "") -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Return the tensors of all parts, each under a name of its own that begins with ``prefix``, and their facts."""
    tensors = {f"{prefix}{i}/{key}": t for i, part in enumerate(parts) for key, t in part.tensors.items()}
    facts = [{"kind": p.kind, "facts": dict(p.facts), "tensors": sorted(p.tensors)} for p in parts]
    return tensors, facts


def unpack_parts(tensors: Mapping[str, Tensor], facts: Sequence[Any], prefix: str = "") -> tuple[Stored, ...]:
    """Return the parts of :func:`pack_parts`.

    Raises:
        ValueError: a tensor is not there, or the facts have another form.
    """
    try:
        return tuple(
            Stored(part["kind"], {key: tensors[f"{prefix}{i}/{key}"] for key in part["tensors"]}, part["facts"])
            for i, part in enumerate(facts)
        )
    except (KeyError, TypeError) as problem:
        raise ValueError(f"the packed parts of a layer are not complete: {problem!r}") from problem


def kept_matrix(layer: Layer, parts: Sequence[Stored]) -> Float[Tensor, "groups out inp"]:
    """Return the matrices of :func:`mlcomp.layerwise.weight_matrix` that the parts stand for.

    The values are those that the layer's dtype can hold: what is set into the layer comes out again.

    Raises:
        ValueError: parts that do not fit together, or not the layer.
    """
    weight = layer.weight
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    rows = torch.cat([restore(part).dequantize().to(wide) for part in parts])
    _check_rows(layer, rows.shape)
    groups = getattr(layer, "groups", 1)
    return rows.to(weight.dtype).to(wide).reshape(groups, len(rows) // groups, -1)


def check_parts(layer: Layer | nn.Embedding, parts: Sequence[Stored]) -> None:
    """Raise what :func:`kept_matrix` raises.

    Where their kind allows it, parts are decoded few rows at a time: what is kept of a layer lies beside what is let
    go, and a hole as large as a weight, for each layer, would be lost to the process.
    """
    rows, widths = 0, set()
    for part in parts:
        out, inp = part.shape
        step = max(1, CHECKED // max(1, inp)) if part.by_rows else max(1, out)
        for start in range(0, out, step):
            some = (start, min(start + step, out)) if step < out else ()
            found = restore(part, *some).dequantize().shape
            rows += found[0]
            widths.add(found[1])
    _check_rows(layer, torch.Size((rows, *widths)))


def _check_rows(layer: Layer | nn.Embedding, shape: torch.Size) -> None:
    if shape != weight_rows(layer, layer.weight.detach()).shape:
        raise ValueError(f"rows {tuple(shape)} do not fit a layer with a weight of {tuple(layer.weight.shape)}")
