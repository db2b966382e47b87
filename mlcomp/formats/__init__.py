"""Number formats, packing to bits, and what storage costs."""

from mlcomp.formats.absmax_int8 import AbsmaxInt8, absmax_int8
from mlcomp.formats.additive_codebook import AdditiveCodes, additive_decode, additive_matvec
from mlcomp.formats.int8_matmul import int8_matmul
from mlcomp.formats.packing import pack, packed_nbytes, unpack
from mlcomp.formats.storage import sparse_nbytes

__all__ = [
    "AbsmaxInt8",
    "AdditiveCodes",
    "absmax_int8",
    "additive_decode",
    "additive_matvec",
    "int8_matmul",
    "pack",
    "packed_nbytes",
    "sparse_nbytes",
    "unpack",
]
