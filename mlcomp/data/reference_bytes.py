"""A fixed text for the byte-level models: the same 64 KiB on every Python, unlike ``python_reference``.

The file holds the first 65 536 bytes of ``python_reference("held_out")`` of Python 3.11.7 (© Python Software
Foundation, PSF-2.0), compressed. The models of ``mlcomp.models.byte_lm`` saw none of its lines of 30 characters or
more.
"""

import lzma
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from mlcomp.checks import check_whole

FILE = Path(__file__).parent / "texts" / "python_reference_held_out.txt.xz"


def reference_bytes(count: int | None = None) -> Int64[Tensor, " count"]:
    """Return the first ``count`` bytes (None: all 65 536) as whole numbers 0 … 255.

    Raises:
        ValueError: a count that is no whole number from 1 to 65 536.
    """
    text = lzma.decompress(FILE.read_bytes())
    if count is not None:
        check_whole("count", count, 1, len(text))
    return torch.tensor(list(text[:count]), dtype=torch.int64)
