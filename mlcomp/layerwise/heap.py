"""Memory that the process has freed and the C library has kept.

What is freed between pieces that stay is a hole in the heap. torch wants pieces at multiples of 64 bytes, for which
glibc looks for holes a little larger than what it gave before: so the process grows, until it is asked to give holes
back. What is given back is taken from the system again, at some 0.3 ms for each megabyte.

Syllabus: 2.01
"""

import ctypes
import sys


def give_back() -> None:
    """Give memory that is free back to the system, where the C library is glibc; another one is left to itself."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
