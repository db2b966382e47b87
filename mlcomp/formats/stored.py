"""What is kept of a compressed weight: named tensors packed to the bit, a few facts, and the way back.

A result class says how it is stored (``stored()``) and how it comes back (``from_stored()``). A file names its class
by a word of the table below, and nothing outside this table is ever imported for it.   Syllabus: 2.10
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import check_floating, check_tensor
from mlcomp.context import isolated
from mlcomp.formats.storage import stored_nbytes

# Word in a file → where its class lives, above this module in the house: looked up when one is restored.
KINDS = {
    "dense": "mlcomp.formats.stored:Dense",
    "bitmask": "mlcomp.formats.bitmask:Bitmask",
    "csr": "mlcomp.formats.csr:CSR",
    "two_four": "mlcomp.formats.two_four:TwoFour",
    "additive": "mlcomp.formats.additive_codebook:AdditiveCodes",
    "quantized": "mlcomp.quant.quantized:Quantized",
    "packed_w4": "mlcomp.quant.w4a16:PackedW4",
    "blockwise": "mlcomp.quant.scalar.blockwise:Blockwise",
    "double_quantized": "mlcomp.quant.scalar.double_quantization:DoubleQuantized",
    "gobo": "mlcomp.quant.scalar.gobo:Gobo",
    "mixed_bits": "mlcomp.quant.scalar.mixed_bits:MixedBits",
    "table": "mlcomp.quant.scalar.table_quantization:TableQuantized",
    "vector": "mlcomp.quant.vector.vector_quantized:VectorQuantized",
    "onebit": "mlcomp.quant.aware_training.onebit:OneBit",
    "spqr": "mlcomp.quant.post_training.spqr_format:SpQR",
    "quip": "mlcomp.quant.post_training.quip:QuIP",
    "quip_sharp": "mlcomp.quant.post_training.quip_sharp:QuIPSharp",
}
FLOATS = {str(d).removeprefix("torch."): d for d in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}


@dataclass(frozen=True)
class Stored:
    """A compressed weight as a file holds it.

    Attributes:
        kind: a word of the table above.
        tensors: what is written, really packed.
        facts: what JSON can hold; "shape" is that of the weight.
    """

    kind: str
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        return tuple(self.facts["shape"])

    @property
    def by_rows(self) -> bool:
        """Whether some rows can be restored without the others."""
        return bool(getattr(_class(self.kind), "by_rows", _never)(self))


@dataclass(frozen=True)
class Dense:
    """A weight as it is.

    Attributes:
        values: (out, inp), any float dtype.
    """

    values: Float[Tensor, "out inp"]

    @isolated
    def dequantize(self) -> Float[Tensor, "out inp"]:
        """Return the weight."""
        return self.values

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return self.values.nbytes

    @property
    def bits_per_weight(self) -> float:
        """Bits of a value."""
        return 8.0 * self.values.element_size()

    def stored(self) -> Stored:
        """Return the values and their shape."""
        return Stored("dense", {"values": self.values.contiguous()}, {"shape": list(self.values.shape)})

    @classmethod
    def from_stored(cls, stored: Stored, start: int = 0, stop: int | None = None) -> "Dense":
        """Return what was stored, or some of its rows."""
        return cls(stored.tensors["values"].reshape(stored.shape)[start:stop])

    @staticmethod
    def by_rows(stored: Stored) -> bool:
        """Return True: each row stands alone."""
        return True


@isolated
def store(result: Any) -> Stored:
    """Return what is kept of a compressed weight.

    Args:
        result: of a class in the table above, or a matrix (out, inp): its non-zero values and a bitmask, or all of
            its values where that is less.
    Raises:
        TypeError: something else. ValueError: parts that the format cannot hold, such as a zero code that is no code.
    Guarantee: the bytes are ``result.nbytes`` (of a matrix :func:`mlcomp.formats.stored_nbytes`), and
        :func:`restore` gives the same weight, bit for bit (zeros of a bitmask as +0).
    """
    if isinstance(result, Tensor):
        check_floating("result", result)
        if result.ndim != 2:
            raise ValueError(f"a weight is stored as a matrix (out, inp), got {tuple(result.shape)}")
        result = _plain(result.detach())
    if not hasattr(result, "stored"):
        raise TypeError(f"a {type(result).__name__} has no stored form; those that have: {', '.join(KINDS)}")
    stored = result.stored()
    if stored.nbytes != result.nbytes:
        raise ValueError(
            f"{type(result).__name__} counts {result.nbytes} bytes, and its tensors have {stored.nbytes}"
        )
    return stored


@isolated
def restore(stored: Stored, start: int = 0, stop: int | None = None) -> Any:
    """Return the compressed weight of :func:`store`, or some of its rows.

    Args:
        stored: tensors on any device; the result lies there, too, and may share their memory.
        start, stop: the rows that are wanted, where ``stored.by_rows``. None: to the last.
    Raises:
        ValueError: an unknown kind, tensors or facts that do not fit it, rows that cannot be had alone.
    """
    kind = _class(stored.kind)
    for name, tensor in stored.tensors.items():
        check_tensor(name, tensor)
    rows: tuple[int, ...] = ()
    if (start, stop) != (0, None):
        if not stored.by_rows:
            raise ValueError(f"a weight of kind {stored.kind!r} is decoded whole: its rows depend on each other")
        rows = (start, stored.shape[0] if stop is None else stop)
        if not 0 <= rows[0] < rows[1] <= stored.shape[0]:
            raise ValueError(f"rows must lie in 0 … {stored.shape[0]}, one at least, got {rows[0]} … {rows[1]}")
    try:
        return kind.from_stored(stored, *rows)
    except (KeyError, IndexError, TypeError, AttributeError, RuntimeError) as problem:
        raise ValueError(f"this is no weight of kind {stored.kind!r}: {problem!r}") from problem


def float_dtype(name: str) -> torch.dtype:
    """Return the floating-point dtype of this name, "float16", "bfloat16", "float32" or "float64"."""
    if name not in FLOATS:
        raise ValueError(f"dtype must be one of {', '.join(FLOATS)}, got {name!r}")
    return FLOATS[name]


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name that :func:`float_dtype` takes."""
    return str(dtype).removeprefix("torch.")


def whole_numbers(name: str, values: Tensor) -> Tensor:
    """Return codes that are kept as floats as integers; raise unless they are whole."""
    codes = values.long()
    if not torch.equal(codes.to(values.dtype), values):
        raise ValueError(f"{name} is stored as a whole number, and holds others")
    return codes


def number(name: str, value: float) -> Tensor:
    """Return a number as the float32 tensor (1,) that it is counted as; raise if it is wider."""
    stored = torch.tensor([value], dtype=torch.float32)
    if float(stored) != value:
        raise ValueError(f"{name} is stored in float32, which does not hold {value!r}")
    return stored


def _class(kind: str) -> Any:
    if kind not in KINDS:
        raise ValueError(f"a stored weight is one of {', '.join(KINDS)}, got {kind!r}: another version's file?")
    home, _, name = KINDS[kind].partition(":")
    return getattr(import_module(home), name)


def _never(stored: Stored) -> bool:
    return False


def _plain(weight: Tensor) -> Any:
    """Return a matrix as it is stored: without its zeros where that is less."""
    if stored_nbytes(weight) < weight.nbytes and bool(torch.isfinite(weight).all()):
        return _class("bitmask").from_dense(weight)
    return Dense(weight)
