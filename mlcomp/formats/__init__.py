"""Number formats, packing to bits, and what storage costs."""

from mlcomp.formats.absmax_int8 import AbsmaxInt8, absmax_int8
from mlcomp.formats.additive_codebook import AdditiveCodes, additive_decode, additive_matvec
from mlcomp.formats.int8_matmul import int8_matmul
from mlcomp.formats.int_format import IntFormat
from mlcomp.formats.number_format import NUMBER_FORMATS, FloatFormat
from mlcomp.formats.packing import pack, pack_planes, packed_nbytes, unpack, unpack_planes
from mlcomp.formats.storage import sparse_nbytes, stored_nbytes
from mlcomp.formats.stored import Dense, Stored, restore, store

__all__ = [
    "NUMBER_FORMATS",
    "AbsmaxInt8",
    "AdditiveCodes",
    "Dense",
    "FloatFormat",
    "IntFormat",
    "Stored",
    "absmax_int8",
    "additive_decode",
    "additive_matvec",
    "int8_matmul",
    "pack",
    "pack_planes",
    "packed_nbytes",
    "restore",
    "sparse_nbytes",
    "store",
    "stored_nbytes",
    "unpack",
    "unpack_planes",
]
