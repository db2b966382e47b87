"""SparseGPT of a layer, half of the weights and 2:4, against the torch loop on the same device."""

from benchmarks.kernels.gptq import single, sweeps
from mlcomp.prune import sparsegpt as reference


def cases(device):
    versions = {"reference": reference}
    if device.type == "cuda":
        from mlcomp.kernels.sparsegpt import sparsegpt

        versions = {"kernel": sparsegpt, "kernel, float32": single(sparsegpt)} | versions
    for name, target in (("50 %", {"sparsity": 0.5}), ("2:4", {"pattern": (2, 4)})):
        yield from sweeps("sparsegpt", name, versions, device, **target)
