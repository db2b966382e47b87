"""SparseGPT with joint quantization, 2:4 in 4 bits, against the torch loop on the same device."""

from benchmarks.kernels.gptq import single, sweeps
from mlcomp.obs import quantized_sparsegpt as reference


def cases(device):
    versions = {"reference": reference}
    if device.type == "cuda":
        from mlcomp.kernels.quantized_sparsegpt import quantized_sparsegpt

        versions = {"kernel": quantized_sparsegpt, "kernel, float32": single(quantized_sparsegpt)} | versions
    target = {"pattern": (2, 4), "bits": 4, "group_size": 128}
    yield from sweeps("quantized_sparsegpt", "2:4, 4 bits, g128", versions, device, **target)
