"""16-bit activations times a compressed 2:4 weight, against cuBLAS on the dense one and PyTorch's own format."""

import torch

from benchmarks import rivals
from benchmarks.measure import Case, close
from mlcomp.formats import TwoFour
from mlcomp.formats import two_four_matmul as reference
from mlcomp.prune import magnitude


def cases(device):
    on_gpu = device.type == "cuda"
    out, inp = (14336, 4096) if on_gpu else (512, 512)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    dense = magnitude(torch.randn(out, inp, device=device).to(dtype), pattern=(2, 4))
    weight = TwoFour.from_dense(dense)
    others = dict(rivals.two_four(dense)) if on_gpu else {}
    for tokens in (1, 16, 64) if on_gpu else (1, 16):
        x = torch.randn(tokens, inp, device=device).to(dtype)
        versions = {"reference": lambda x=x: reference(x, weight), "float32": lambda x=x: x @ dense.T}
        if on_gpu:
            from mlcomp.kernels.two_four_matmul import two_four_matmul

            versions = {"kernel": lambda x=x: two_four_matmul(x, weight), "cuBLAS bf16": lambda x=x: x @ dense.T}
            versions |= {name: lambda x=x, f=function: f(x) for name, function in others.items()}

        def check(x=x, versions=versions):
            close(next(iter(versions.values()))(), x.float() @ dense.float().T, 5e-3)

        size = weight.nbytes + x.nbytes + x.element_size() * tokens * out
        yield Case(
            "two_four_matmul", f"{tokens}×{inp} · {out}×{inp}", "bf16" if on_gpu else "fp32", versions, check, size,
            tokens * out * inp, "bf16" if on_gpu else "fp32", ("kernel", "cuBLAS bf16"),
        )  # fmt: skip
