"""The int8 product with row scales (quantizing the activations included) against bf16 and torch's int8 product."""

import torch

from benchmarks import rivals
from benchmarks.measure import Case, close
from mlcomp.formats import absmax_int8 as quantize
from mlcomp.formats.int8_matmul import int8_matmul as reference


def cases(device):
    on_gpu = device.type == "cuda"
    for tokens, out, inp in [(t, 14336, 4096) for t in (1, 16, 4096)] if on_gpu else [(16, 512, 512)]:
        dtype = torch.bfloat16 if on_gpu else torch.float32
        x = torch.randn(tokens, inp, device=device).to(dtype)
        w = torch.randn(out, inp, device=device).to(dtype)
        weight = quantize(w, -1)
        versions = {"reference": lambda x=x, weight=weight: reference(quantize(x, -1), weight)}
        if on_gpu:
            from mlcomp.kernels.absmax_int8 import absmax_int8
            from mlcomp.kernels.int8_matmul import int8_matmul

            codes = quantize(x, -1)
            versions = {
                "kernel": lambda x=x, weight=weight: int8_matmul(absmax_int8(x, -1), weight, dtype=torch.bfloat16),
                "kernel, codes given": lambda q=codes, weight=weight: int8_matmul(q, weight, dtype=torch.bfloat16),
                "cuBLAS bf16": lambda x=x, w=w: x @ w.T,
            }
            if tokens > 16:  # torch._int_mm takes no fewer

                def int_mm(q=codes, weight=weight):
                    return (torch._int_mm(q.codes, weight.codes.T) * q.scale * weight.scale.T).bfloat16()

                versions |= {"_int_mm, codes given": int_mm}
            others = dict(rivals.int8(w))
            versions |= {name: lambda x=x, f=function: f(x) for name, function in others.items()}
        else:
            versions["float32"] = lambda x=x, w=w: x @ w.T

        def check(x=x, weight=weight, versions=versions):
            if "kernel" in versions:
                # Rounding to bf16, 2e-3; and a tie goes the other way where torch's scale on a GPU is an ulp off.
                close(versions["kernel"](), reference(quantize(x, -1), weight), 5e-3)

        size = out * inp + x.nbytes + (2 if on_gpu else 4) * tokens * out
        yield Case(
            "int8_matmul", f"{tokens}×{inp} · {out}×{inp}", "int8", versions, check, size, 2 * tokens * out * inp,
            "int8" if on_gpu else "fp32", tuple(set(versions) - {"bitsandbytes"}),
        )  # fmt: skip
