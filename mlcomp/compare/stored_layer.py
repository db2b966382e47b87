"""What a compressed layer is on disk: the arrays that are written, really packed, and the weight they stand for."""

from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor

from mlcomp.formats import AbsmaxInt8, pack, packed_nbytes, sparse_nbytes
from mlcomp.formats import store as packed
from mlcomp.quant import Quantized


@dataclass(frozen=True)
class Stored:
    """One layer as it is stored.

    Attributes:
        weight: what a reader of the file gets, (out, inp).
        nbytes: of all arrays together.
        arrays: what is written; None where the size is the result's own account (``nbytes``), not written out.
    """

    weight: Tensor
    nbytes: int
    arrays: tuple[Tensor, ...] | None


@singledispatch
def store(result: Any, pattern: tuple[int, int] | None = None) -> Stored:
    """Return what is stored of a method's result: its stored form, or its own account where it has none.

    Raises:
        TypeError: neither a tensor nor a result with ``dequantize()`` and ``nbytes``.
    """
    if not (hasattr(result, "dequantize") and hasattr(result, "nbytes")):
        raise TypeError(f"a method returns a tensor, or a result with dequantize() and nbytes; got {type(result)}")
    arrays = tuple(packed(result).tensors.values()) if hasattr(result, "stored") else None
    return Stored(result.dequantize().float(), result.nbytes, arrays)


@store.register
def _(result: Tensor, pattern: tuple[int, int] | None = None) -> Stored:
    """A pruned weight: float16 values, and a bitmask or the places of an n:m pattern; dense where that is less."""
    values = result.half()
    kept = values != 0
    arrays: tuple[Tensor, ...]
    if pattern is not None:
        arrays = _slots(values, kept, pattern, 16)
    else:
        arrays = (values[kept], pack(kept.to(torch.uint8), 1))
    if sum(a.nbytes for a in arrays) >= values.nbytes:
        arrays = (values,)
    return Stored(values.float(), sum(a.nbytes for a in arrays), arrays)


@store.register
def _(result: Quantized, pattern: tuple[int, int] | None = None) -> Stored:
    """Codes, steps, zero codes; with a pattern only the codes of its slots, and their places."""
    tensors, weight = dict(packed(result).tensors), result.dequantize().float()
    if pattern is not None:
        codes, places = _slots(result.codes, weight != 0, pattern, result.bits)
        del tensors["codes"]
        tensors = {"codes": pack(codes, result.bits), "places": places} | tensors
    return Stored(weight, sum(t.nbytes for t in tensors.values()), tuple(tensors.values()))


@store.register
def _(result: AbsmaxInt8, pattern: tuple[int, int] | None = None) -> Stored:
    return Stored(result.dequantize().float(), sum(a.nbytes for a in result), tuple(result))


def _slots(values: Tensor, kept: Tensor, pattern: tuple[int, int], value_bits: int) -> tuple[Tensor, Tensor]:
    """Return the m − n values of each block of m inputs, the kept ones first, and their places, packed."""
    zeros, block = pattern
    out, inp = values.shape
    if inp % block:
        raise ValueError(f"{inp} inputs are no whole number of blocks of {block}")
    # A stable sort puts the kept ones first, in their order.
    place = kept.reshape(-1, block).to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, : block - zeros]
    chosen, places = values.reshape(-1, block).gather(1, place), pack(place, (block - 1).bit_length())
    counted = sparse_nbytes((out, inp), int(kept.sum()), format="n:m", value_bits=value_bits, pattern=pattern)
    if packed_nbytes(chosen.numel(), value_bits) + places.nbytes != counted:
        raise AssertionError(f"the written arrays are not the {counted} bytes that the format counts")
    return chosen, places
