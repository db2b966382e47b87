"""ExactOBS of all rows of a layer at once, against the batched torch version on the same device."""

import torch

from benchmarks.measure import Case
from mlcomp.data import make_layer
from mlcomp.metrics import relative_error
from mlcomp.obs import exact_obs as reference
from mlcomp.obs import layer_hessian


def layer(device, out, inp):
    weight, inputs = (part.to(device) for part in make_layer(out, inp, 4 * inp, seed=0)[:2])
    return weight, inputs, layer_hessian(inputs)


def cases(device):
    on_gpu = device.type == "cuda"
    options = {"sparsity": 0.5, "scope": "row"}
    for out, inp in [(4096, 128), (576, 576)] if on_gpu else [(64, 64)]:
        weight, inputs, hessian = layer(device, out, inp)
        versions = {"reference": lambda w=weight, h=hessian: reference(w, h, **options)}
        if on_gpu:
            from mlcomp.kernels.exact_obs import exact_obs

            versions = {
                "kernel": lambda w=weight, h=hessian: exact_obs(w, h, dtype=torch.float32, **options),
                "kernel, float64": lambda w=weight, h=hessian: exact_obs(w, h, **options),
            } | versions

        def check(weight=weight, inputs=inputs, versions=versions):
            errors = [float(relative_error(weight, f(), inputs)) for f in versions.values()]
            assert max(errors) <= 1.01 * min(errors), errors

        steps = inp // 2
        # A multiply-add for each number of each earlier elimination vector: inp·k²/2 of them in k steps.
        yield Case(
            "exact_obs", f"{out}×{inp}, 50 % of each row", "fp32", versions, check, 8 * weight.numel() + 4 * inp**2,
            out * inp * steps**2, "fp32",
        )  # fmt: skip
