"""The Walsh-Hadamard transform against a copy, butterflies in torch, and the product with the dense matrix."""

import torch

from benchmarks.measure import Case, close
from mlcomp.quant.post_training.hadamard import hadamard_matrix
from mlcomp.quant.post_training.hadamard import hadamard_transform as reference


def cases(device):
    on_gpu = device.type == "cuda"
    shapes = [(8192, 4096, torch.bfloat16), (4096, 14336, torch.bfloat16), (8192, 4096, torch.float32)]
    for rows, n, dtype in shapes if on_gpu else [(256, 1024, torch.float32), (256, 576, torch.float32)]:
        x = torch.randn(rows, n, device=device).to(dtype)
        dense = (hadamard_matrix(n).T / n**0.5).to(x)
        versions = {"reference": lambda x=x: reference(x), "dense product": lambda x=x, dense=dense: x @ dense}
        if on_gpu:
            from mlcomp.kernels.hadamard_transform import hadamard_transform

            versions = {"kernel": lambda x=x: hadamard_transform(x), "copy": x.clone} | versions

        def check(x=x, versions=versions):
            want = reference(x.double())
            close(next(iter(versions.values()))(), want, 2e-3 if x.dtype == torch.bfloat16 else 1e-6)

        # Butterflies: log₂(n/m) + m additions a value; counted as if on the matrix units, which never bounds.
        yield Case(
            "hadamard_transform", f"{rows}×{n}", str(dtype)[6:], versions, check, 2 * x.nbytes, 12 * x.numel(),
            "fp32", ("kernel", "copy", "dense product"),
        )  # fmt: skip
