"""One token times a weight of one bit (signs, and a value a row and a column) against the dense product."""

import torch

from benchmarks.measure import Case, close
from mlcomp.formats.onebit_matmul import onebit_matmul as reference
from mlcomp.formats.xnor_matmul import pack_signs


def cases(device):
    on_gpu = device.type == "cuda"
    out, inp = (14336, 4096) if on_gpu else (512, 512)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    signs = pack_signs(torch.randn(out, inp, device=device))
    rows, columns = torch.rand(out, device=device) + 0.5, torch.rand(inp, device=device) + 0.5
    dense = (rows[:, None] * columns * signs.signs()).to(dtype)
    for tokens in (1, 4):
        x = torch.randn(tokens, inp, device=device).to(dtype)
        versions = {
            "reference": lambda x=x: reference(x, signs, rows, columns), "float32": lambda x=x: x @ dense.T
        }  # fmt: skip
        if on_gpu:
            from mlcomp.kernels.onebit_matmul import onebit_matmul

            versions = {
                "kernel": lambda x=x: onebit_matmul(x, signs, rows, columns), "cuBLAS bf16": lambda x=x: x @ dense.T
            }  # fmt: skip

        def check(x=x, versions=versions):
            close(next(iter(versions.values()))(), reference(x.float(), signs, rows, columns), 5e-3)

        size = signs.nbytes + rows.nbytes + columns.nbytes + x.nbytes + x.element_size() * tokens * out
        yield Case(
            "onebit_matmul", f"{tokens}×{inp} · {out}×{inp}", "1 bit", versions, check, size, 3 * tokens * out * inp,
            "fp32", ("kernel", "cuBLAS bf16"),
        )  # fmt: skip
