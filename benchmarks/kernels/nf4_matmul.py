"""16-bit activations times doubly quantized NF4 codes against cuBLAS on bf16, and other libraries' 4-bit products."""

import torch

from benchmarks import rivals
from benchmarks.measure import Case, close
from mlcomp.quant import double_quantize, pack_nf4
from mlcomp.quant import nf4_matmul as reference


def cases(device):
    on_gpu = device.type == "cuda"
    out, inp = (14336, 4096) if on_gpu else (512, 512)
    weight = pack_nf4(double_quantize(torch.randn(out, inp, device=device)))
    dtype = torch.bfloat16 if on_gpu else torch.float32
    dense = weight.dequantize().to(dtype)
    others = dict(rivals.w4a16(dense, 64)) if on_gpu else {}
    for tokens in (1, 4, 16, 64) if on_gpu else (1, 16):
        x = torch.randn(tokens, inp, device=device).to(dtype)
        versions = {"reference": lambda x=x: reference(x, weight), "float32": lambda x=x: x @ dense.T}
        if on_gpu:
            from mlcomp.kernels.nf4_matmul import nf4_matmul

            versions = {"kernel": lambda x=x: nf4_matmul(x, weight), "cuBLAS bf16": lambda x=x: x @ dense.T}
            versions |= {name: lambda x=x, f=function: f(x) for name, function in others.items()}

        def check(x=x, versions=versions):
            close(next(iter(versions.values()))(), x.float() @ weight.dequantize().T, 5e-3)

        size = weight.nbytes + x.nbytes + x.element_size() * tokens * out
        yield Case(
            "nf4_matmul", f"{tokens}×{inp} · {out}×{inp}", "bf16" if on_gpu else "fp32", versions, check, size,
            2 * tokens * out * inp, "bf16" if on_gpu else "fp32", ("kernel", "cuBLAS bf16", "bitsandbytes"),
        )  # fmt: skip
