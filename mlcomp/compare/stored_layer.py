"""What a compressed layer is on disk: the arrays that are written, really packed, and the weight they stand for."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor

from mlcomp.formats import AbsmaxInt8, AdditiveCodes, pack, packed_nbytes, sparse_nbytes
from mlcomp.quant import Blockwise, Quantized, TableQuantized, VectorQuantized


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
    """Return what is stored of a method's result.

    Raises:
        TypeError: neither a tensor nor a result with ``dequantize()`` and ``nbytes``.
    """
    if not (hasattr(result, "dequantize") and hasattr(result, "nbytes")):
        raise TypeError(f"a method returns a tensor, or a result with dequantize() and nbytes; got {type(result)}")
    return Stored(result.dequantize().float(), result.nbytes, None)


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
    arrays = [pack(result.codes, result.bits), result.step]
    if not result.symmetric:
        arrays.append(pack(result.zero.to(torch.uint8), result.bits))
    if result.group is not None:
        arrays.append(pack(result.group, max(1, (result.step.shape[1] - 1).bit_length())))
    _same_account(result, arrays)
    weight = result.dequantize().float()
    if pattern is not None:
        codes, places = _slots(result.codes, weight != 0, pattern, result.bits)
        arrays[:1] = [pack(codes, result.bits), places]
    return Stored(weight, sum(a.nbytes for a in arrays), tuple(arrays))


@store.register
def _(result: Blockwise, pattern: tuple[int, int] | None = None) -> Stored:
    arrays = [pack(result.codes, result.bits), result.scale]
    if result.stored_levels:
        arrays.append(result.levels.half())
    _same_account(result, arrays)
    return Stored(result.dequantize(), sum(a.nbytes for a in arrays), tuple(arrays))


@store.register
def _(result: AdditiveCodes, pattern: tuple[int, int] | None = None) -> Stored:
    bits = (result.codebooks.shape[1] - 1).bit_length()
    arrays = (pack(result.codes, bits), result.codebooks, result.scale)
    _same_account(result, arrays)
    return Stored(result.dequantize().float(), sum(a.nbytes for a in arrays), arrays)


@store.register
def _(result: VectorQuantized, pattern: tuple[int, int] | None = None) -> Stored:
    bits = (result.codebooks.shape[1] - 1).bit_length()
    arrays = (pack(result.codes, bits), result.codebooks)
    _same_account(result, arrays)
    return Stored(result.dequantize().float(), sum(a.nbytes for a in arrays), arrays)


@store.register
def _(result: TableQuantized, pattern: tuple[int, int] | None = None) -> Stored:
    levels = result.codebook.levels.to(result.scale.dtype)
    arrays = (pack(result.codes, (len(levels) - 1).bit_length()), result.scale, levels)
    _same_account(result, arrays)
    return Stored(result.dequantize().float(), sum(a.nbytes for a in arrays), arrays)


@store.register
def _(result: AbsmaxInt8, pattern: tuple[int, int] | None = None) -> Stored:
    return Stored(result.dequantize().float(), sum(a.nbytes for a in result), tuple(result))


def _same_account(result: Any, arrays: Sequence[Tensor]) -> None:
    """Raise if a result's own account of its size is not what was packed."""
    if sum(a.nbytes for a in arrays) != result.nbytes:
        raise AssertionError(f"{type(result).__name__} says {result.nbytes} bytes, the packed arrays differ")


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
