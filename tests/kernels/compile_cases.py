"""What test_compile.py compiles: each function launches the kernels of one operation at one real shape."""

import torch

BF16 = torch.bfloat16


def absmax_int8():
    from mlcomp.kernels.absmax_int8 import absmax_int8

    absmax_int8(torch.empty(4096, 14336, dtype=BF16), -1)
