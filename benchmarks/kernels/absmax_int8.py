"""Row-wise absmax int8: the kernel against eager torch and torch.compile."""

import torch

from benchmarks.measure import Case
from mlcomp.formats import absmax_int8 as reference


def plain(x):
    """The same arithmetic without checks, as one would write it in a model."""
    scale = x.float().abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
    return torch.round(x.float() / scale).to(torch.int8), scale


def cases(device):
    on_gpu = device.type == "cuda"
    for rows, n in [(4096, 14336), (4096, 4096), (16, 4096)] if on_gpu else [(256, 1024)]:
        x = torch.randn(rows, n, device=device).bfloat16()
        versions = {"reference": lambda x=x: reference(x, -1)}
        if on_gpu:
            from mlcomp.kernels.absmax_int8 import absmax_int8

            compiled = torch.compile(plain)
            versions = {
                "kernel": lambda x=x: absmax_int8(x, -1),
                "eager": lambda x=x: plain(x),
                "torch.compile": lambda x=x, f=compiled: f(x),
            } | versions

        def check(x=x, versions=versions):
            want = reference(x.cpu(), -1)
            got = next(iter(versions.values()))()
            assert torch.equal(got.codes.cpu(), want.codes) and torch.equal(got.scale.cpu(), want.scale)

        size = 3 * x.numel() + 4 * rows
        graph = ("kernel", "eager", "torch.compile")
        yield Case("absmax_int8", f"{rows}×{n}", "bf16", versions, check, size, 3 * x.numel(), "fp32", graph)
