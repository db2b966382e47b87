"""Triton kernels: one operation, one file, with the name and the leading arguments of its reference.

Importing this package imports nothing. Importing a kernel imports Triton, which reads ``TRITON_INTERPRET`` at that
moment: a machine without a GPU runs kernels only in Triton's interpreter, so there call :func:`interpret_without_gpu`
first. Where Triton is missing, :func:`unavailable` says why.
"""

import os
import sys

from mlcomp.kernels.without_triton import unavailable

__all__ = ["interpret_without_gpu", "unavailable"]


def interpret_without_gpu() -> bool:
    """Choose Triton's interpreter where there is no GPU. Call it before Triton is imported.

    Returns:
        True if kernels will run in the interpreter (on CPU tensors), False if on the GPU.
    Raises:
        RuntimeError: there is no GPU, and Triton has already been imported without the interpreter.
    """
    import torch

    if torch.cuda.is_available():
        return os.environ.get("TRITON_INTERPRET") == "1"
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(
            "Triton has been imported already and will not switch to its interpreter: call interpret_without_gpu() "
            "earlier, or start Python with TRITON_INTERPRET=1"
        )
    os.environ["TRITON_INTERPRET"] = "1"
    return True
