"""A vector times a weight of two additive codebooks (2 bits a weight) against the dense product."""

import torch

from benchmarks.measure import Case, close
from mlcomp.formats.additive_codebook import AdditiveCodes, additive_decode
from mlcomp.formats.additive_codebook import additive_matvec as reference


def example(device, out, inp):
    codes = torch.randint(256, (out, inp // 8, 2), dtype=torch.uint8, device=device)
    books = torch.randn(2, 256, 8, device=device).to(torch.bfloat16 if device.type == "cuda" else torch.float32)
    return AdditiveCodes(codes, books, torch.rand(out, device=device) + 0.5)


def cases(device):
    on_gpu = device.type == "cuda"
    out, inp = (14336, 4096) if on_gpu else (512, 512)
    weight = example(device, out, inp)
    dense = additive_decode(weight)
    x = torch.randn(inp, device=device).to(dense.dtype)
    versions = {"reference": lambda: reference(x, weight), "dense": lambda: dense @ x}
    if on_gpu:
        from mlcomp.kernels.additive_matvec import additive_matvec

        versions = {"kernel": lambda: additive_matvec(x, weight), "cuBLAS bf16": lambda: dense @ x}

    def check():
        close(next(iter(versions.values()))(), reference(x.double(), weight), 2e-3 if on_gpu else 1e-5)

    # A look-up and an addition for each code.
    yield Case(
        "additive_matvec", f"{out}×{inp}, 2×8 bits", "bf16" if on_gpu else "fp32", versions, check,
        weight.nbytes + x.nbytes + x.element_size() * out, 2 * weight.codes.numel(), "fp32",
        ("kernel", "cuBLAS bf16"),
    )  # fmt: skip
