"""Products of two matrices of signs against the dense product, in bf16 on a GPU."""

import torch

from benchmarks.measure import Case
from mlcomp.formats.xnor_matmul import pack_signs
from mlcomp.formats.xnor_matmul import xnor_matmul as reference


def cases(device):
    on_gpu = device.type == "cuda"
    out, inp = (14336, 4096) if on_gpu else (512, 512)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    weight = pack_signs(torch.randn(out, inp, device=device))
    dense = weight.signs().to(dtype)
    for rows in (1, 8, 64) if on_gpu else (1, 8):
        x = pack_signs(torch.randn(rows, inp, device=device))
        numbers = x.signs().to(dtype)
        versions = {"reference": lambda x=x: reference(x, weight), "float32": lambda n=numbers: n @ dense.T}
        if on_gpu:
            from mlcomp.kernels.xnor_matmul import xnor_matmul

            versions = {"kernel": lambda x=x: xnor_matmul(x, weight), "cuBLAS bf16": lambda n=numbers: n @ dense.T}

        def check(x=x, versions=versions):
            assert torch.equal(next(iter(versions.values()))(), reference(x, weight))

        # An XOR, a count and an addition for 32 products, on the units of 32-bit arithmetic.
        yield Case(
            "xnor_matmul", f"{rows}×{inp} · {out}×{inp}", "1 bit", versions, check,
            weight.nbytes + x.nbytes + 4 * rows * out, 3 * rows * out * inp // 32, "fp32", ("kernel", "cuBLAS bf16"),
        )  # fmt: skip
