"""16-bit activations times packed 4-bit weights against cuBLAS on bf16, and 4-bit products of other libraries."""

import torch

from benchmarks import rivals
from benchmarks.measure import Case, close
from mlcomp.quant import rtn
from mlcomp.quant.w4a16 import pack_w4
from mlcomp.quant.w4a16 import w4a16_matmul as reference


def cases(device):
    on_gpu = device.type == "cuda"
    out, inp = (14336, 4096) if on_gpu else (512, 512)
    weight = pack_w4(rtn(torch.randn(out, inp, device=device), bits=4, group_size=128))
    dtype = torch.bfloat16 if on_gpu else torch.float32
    dense = weight.dequantize().to(dtype)
    others = dict(rivals.w4a16(dense, 128)) if on_gpu else {}
    for tokens in (1, 4, 16, 64) if on_gpu else (1, 16):
        x = torch.randn(tokens, inp, device=device).to(dtype)
        versions = {"reference": lambda x=x: reference(x, weight)}
        if on_gpu:
            from mlcomp.kernels.w4a16_matmul import w4a16_matmul

            versions = {"kernel": lambda x=x: w4a16_matmul(x, weight), "cuBLAS bf16": lambda x=x: x @ dense.T}
            versions |= {name: lambda x=x, f=function: f(x) for name, function in others.items()}
        else:
            versions["float32"] = lambda x=x: x @ dense.T

        def check(x=x, versions=versions):
            close(next(iter(versions.values()))(), x.float() @ weight.dequantize().T, 5e-3)

        size = weight.nbytes + x.nbytes + x.element_size() * tokens * out
        yield Case(
            "w4a16_matmul", f"{tokens}×{inp} · {out}×{inp} g128", "bf16", versions, check, size,
            2 * tokens * out * inp, "bf16" if on_gpu else "fp32", ("kernel", "cuBLAS bf16", "torchao", "gemlite"),
        )  # fmt: skip
