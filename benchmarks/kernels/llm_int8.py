"""LLM.int8() with no, some and many outlier columns against cuBLAS on bf16 and bitsandbytes; x is quantized, too."""

import torch

from benchmarks import rivals
from benchmarks.measure import Case, close
from mlcomp.formats import absmax_int8
from mlcomp.quant import llm_int8 as reference


def cases(device):
    on_gpu = device.type == "cuda"
    out, inp = (14336, 4096) if on_gpu else (256, 256)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    dense = torch.randn(out, inp, device=device).to(dtype)
    weight = absmax_int8(dense, -1)
    others = dict(rivals.int8(dense)) if on_gpu else {}
    for tokens in (16, 4096) if on_gpu else (16,):
        for outliers in (0, 32, inp // 4):
            x = torch.randn(tokens, inp, device=device).clamp(-5, 5)
            x[0, torch.randperm(inp)[:outliers].to(device)] = 20.0
            x = x.to(dtype)
            versions = {"reference": lambda x=x: reference(x, weight), "float32": lambda x=x: x @ dense.T}
            if on_gpu:
                from mlcomp.kernels.llm_int8 import llm_int8

                versions = {"kernel": lambda x=x: llm_int8(x, weight), "cuBLAS bf16": lambda x=x: x @ dense.T}
                versions |= {name: lambda x=x, f=function: f(x) for name, function in others.items()}

            def check(x=x, versions=versions):
                few = x[:64]
                close(next(iter(versions.values()))()[:64], reference(few.float(), weight), 1e-2)

            size = weight.codes.nbytes + x.nbytes + x.element_size() * tokens * (out + outliers) + 2 * out * outliers
            yield Case(
                "llm_int8", f"{tokens}×{inp} · {out}×{inp}, {outliers} outliers", "int8", versions, check, size,
                2 * tokens * out * inp, "int8", ("cuBLAS bf16",),
            )  # fmt: skip
