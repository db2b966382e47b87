"""Number formats, packing to bits, and what storage costs."""

from mlcomp.formats.absmax_int8 import AbsmaxInt8, absmax_int8
from mlcomp.formats.packing import pack, packed_nbytes, unpack
from mlcomp.formats.storage import sparse_nbytes

__all__ = ["AbsmaxInt8", "absmax_int8", "pack", "packed_nbytes", "sparse_nbytes", "unpack"]
