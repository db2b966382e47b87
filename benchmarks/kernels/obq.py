"""OBQ of all rows of a layer at once, against the batched torch version on the same device."""

import torch

from benchmarks.kernels.exact_obs import layer
from benchmarks.measure import Case
from mlcomp.metrics import relative_error
from mlcomp.obs import obq as reference


def cases(device):
    on_gpu = device.type == "cuda"
    for out, inp in [(4096, 128), (576, 576)] if on_gpu else [(64, 64)]:
        weight, inputs, hessian = layer(device, out, inp)
        versions = {"reference": lambda w=weight, h=hessian: reference(w, h, bits=4)}
        if on_gpu:
            from mlcomp.kernels.obq import obq

            versions = {
                "kernel": lambda w=weight, h=hessian: obq(w, h, bits=4, dtype=torch.float32),
                "kernel, float64": lambda w=weight, h=hessian: obq(w, h, bits=4),
            } | versions

        def check(weight=weight, inputs=inputs, versions=versions):
            errors = [float(relative_error(weight, f().dequantize(), inputs)) for f in versions.values()]
            assert max(errors) <= 1.02 * min(errors), errors

        yield Case(
            "obq", f"{out}×{inp}, 4 bits", "fp32", versions, check, 5 * weight.numel() + 4 * inp**2,
            out * inp**3, "fp32",
        )  # fmt: skip
