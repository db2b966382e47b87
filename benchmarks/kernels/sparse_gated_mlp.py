"""One token through a gated MLP of which half, or 70 %, of the neurons are inactive, against the dense one."""

import torch
from torch.nn import functional as F

from benchmarks.measure import Case, close
from mlcomp.prune import sparse_gated_mlp as reference


def cases(device):
    on_gpu = device.type == "cuda"
    hidden, inp = (14336, 4096) if on_gpu else (512, 256)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    gate, up, by_neuron = (
        torch.randn(hidden, inp, device=device).div(inp**0.5).to(dtype) for _ in range(3)
    )  # fmt: skip
    x = torch.randn(1, inp, device=device).to(dtype)
    v = F.silu(x @ gate.T).float().abs().flatten()

    def dense():
        return (F.silu(x @ gate.T) * (x @ up.T)) @ by_neuron

    for share in (0.5, 0.7):
        t = float(v.quantile(share))
        versions = {"reference": lambda t=t: reference(x, gate, up, by_neuron.T, t), "dense": dense}
        if on_gpu:
            from mlcomp.kernels.sparse_gated_mlp import sparse_gated_mlp

            versions = {"kernel": lambda t=t: sparse_gated_mlp(x, gate, up, by_neuron.T, t), "cuBLAS bf16": dense}

        def check(t=t, versions=versions):
            want = reference(x.float(), gate.float(), up.float(), by_neuron.float().T, t)
            close(next(iter(versions.values()))(), want, 2e-2)  # v in 16 bits moves neurons over the threshold

        size = gate.nbytes + (1 - share) * (up.nbytes + by_neuron.nbytes)
        yield Case(
            "sparse_gated_mlp", f"1×{inp}, {hidden} neurons, {share:.0%} inactive", "bf16" if on_gpu else "fp32",
            versions, check, size, 2 * gate.numel() * (1 + 2 * (1 - share)), "bf16" if on_gpu else "fp32",
            ("kernel", "cuBLAS bf16"),
        )  # fmt: skip
