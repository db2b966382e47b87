"""Memory that the process has freed and the C library has kept.

torch asks for memory that begins at multiples of 64 bytes, and glibc before 2.38 seldom hands out such a piece for a
second time (its bug 14581): so the process grows by what it frees, until it is asked to give that back.

Syllabus: 2.01
"""

import ctypes
import sys


def give_back() -> None:
    """Give memory that is free back to the system, where the C library is glibc; another one is left to itself."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
