"""Decoding a weight of two additive codebooks against indexing in torch."""

import torch

from benchmarks.kernels.additive_matvec import example
from benchmarks.measure import Case
from mlcomp.formats.additive_codebook import additive_decode as reference


def cases(device):
    on_gpu = device.type == "cuda"
    weight = example(device, *(14336, 4096) if on_gpu else (512, 512))
    versions = {"reference": lambda: reference(weight)}
    if on_gpu:
        from mlcomp.kernels.additive_decode import additive_decode

        versions = {"kernel": lambda: additive_decode(weight)} | versions

    def check():
        assert torch.equal(next(iter(versions.values()))(), reference(weight))

    out = weight.codes.shape[0]
    size = weight.nbytes + weight.codebooks.element_size() * out * weight.inp
    yield Case(
        "additive_decode", f"{out}×{weight.inp}, 2×8 bits", "bf16" if on_gpu else "fp32", versions, check, size,
        3 * out * weight.inp, "fp32", ("kernel",),
    )  # fmt: skip
