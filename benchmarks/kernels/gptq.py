"""GPTQ of a layer in groups of 128 against the torch loop on the same device: whole, and with the factor given."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.measure import Case
from mlcomp.layerwise import layer_hessian, output_loss
from mlcomp.layerwise.hessian import SharedHessian, sharing
from mlcomp.quant import gptq as reference


def cases(device):
    versions = {"reference": reference}
    if device.type == "cuda":
        from mlcomp.kernels.gptq import gptq

        versions = {"kernel": gptq, "kernel, float32": single(gptq)} | versions
    yield from sweeps("gptq", "4 bits, g128", versions, device, bits=4, group_size=128)


def sweeps(operation: str, name: str, functions: dict, device: torch.device, **options) -> Iterator[Case]:
    """Yield for each shape the whole function, and with the factor given, as for the second of q, k, v."""
    on_gpu = device.type == "cuda"
    for out, inp in [(4096, 4096), (4096, 14336)] if on_gpu else [(64, 128)]:
        weight, hessian = layer(device, out, inp)
        for given in (False, True):
            shared = SharedHessian(hessian) if given else None
            versions = {
                version: lambda f=f, w=weight, h=hessian, s=shared: _run(f, w, h, s, options)
                for version, f in functions.items()
            }

            def check(weight=weight, hessian=hessian, versions=versions):
                losses = [float(output_loss(_dense(f()) - weight, hessian).sum()) for f in versions.values()]
                assert max(losses) <= 1.02 * min(losses), losses

            yield Case(
                operation, f"{out}×{inp}, {name}{', factor given' * given}", "fp32", versions, check,
                8 * weight.numel() + 4 * inp**2, out * inp**2 + (0 if given else inp**3), "fp32",
            )  # fmt: skip


def layer(device: torch.device, out: int, inp: int) -> tuple[Tensor, Tensor]:
    """Return a weight and the Hessian of correlated inputs of different strength, both made on the device."""
    x = torch.randn(inp, 2 * inp, device=device)
    x = (x + 0.7 * x.roll(1, 0)) * torch.exp(0.5 * torch.randn(inp, 1, device=device))
    return torch.randn(out, inp, device=device) / inp**0.5, layer_hessian(x)


def single(function: Callable) -> Callable:
    """Return the kernel with its sweep in float32."""
    return lambda *args, **options: function(*args, **options, dtype=torch.float32)


def _run(function: Callable, weight: Tensor, hessian: Tensor, shared: SharedHessian | None, options: dict):
    with sharing(shared):
        return function(weight, hessian, **options)


def _dense(result) -> Tensor:
    return result if isinstance(result, Tensor) else result.dequantize()
