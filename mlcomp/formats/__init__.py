"""Number formats, packing to bits, and what storage costs."""

from mlcomp.formats.absmax_int8 import AbsmaxInt8, absmax_int8
from mlcomp.formats.additive_codebook import AdditiveCodes, additive_decode, additive_matvec
from mlcomp.formats.bitmask import Bitmask
from mlcomp.formats.csr import CSR, csr_matmul
from mlcomp.formats.dtype_support import Support, dtype_support
from mlcomp.formats.int8_matmul import int8_matmul
from mlcomp.formats.int_format import IntFormat
from mlcomp.formats.number_format import NUMBER_FORMATS, FloatFormat
from mlcomp.formats.onebit_matmul import onebit_matmul
from mlcomp.formats.packing import pack, pack_planes, packed_nbytes, unpack, unpack_planes
from mlcomp.formats.storage import sparse_nbytes, stored_nbytes
from mlcomp.formats.stored import Dense, Stored, restore, store
from mlcomp.formats.two_four import TwoFour, two_four_matmul
from mlcomp.formats.xnor_matmul import PackedSigns, pack_signs, xnor_matmul

__all__ = [
    "CSR",
    "NUMBER_FORMATS",
    "AbsmaxInt8",
    "AdditiveCodes",
    "Bitmask",
    "Dense",
    "FloatFormat",
    "IntFormat",
    "PackedSigns",
    "Stored",
    "Support",
    "TwoFour",
    "absmax_int8",
    "additive_decode",
    "additive_matvec",
    "csr_matmul",
    "dtype_support",
    "int8_matmul",
    "onebit_matmul",
    "pack",
    "pack_planes",
    "pack_signs",
    "packed_nbytes",
    "restore",
    "sparse_nbytes",
    "store",
    "stored_nbytes",
    "two_four_matmul",
    "unpack",
    "unpack_planes",
    "xnor_matmul",
]
