"""Soft targets over the vocabulary of a language model, with the gradient, against eager PyTorch."""

import torch

from benchmarks.measure import Case, close
from mlcomp.distill import soft_target_loss as reference


def with_gradient(function, student, teacher, direction):
    """Return the gradient of the loss."""
    leaf = student.detach().requires_grad_()
    function(leaf, teacher, temperature=2.0, direction=direction).backward()
    return leaf.grad


def cases(device):
    on_gpu = device.type == "cuda"
    samples, classes = (8192, 128256) if on_gpu else (64, 4096)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    student, teacher = (torch.randn(samples, classes, device=device, dtype=dtype) for _ in range(2))
    compiled = torch.compile(reference)  # lazily: nothing happens where it is not called
    for direction in ("forward", "reverse"):
        versions = {"reference": lambda d=direction: with_gradient(reference, student, teacher, d)}
        if on_gpu:
            from mlcomp.kernels.soft_target_loss import soft_target_loss

            versions = {
                "kernel": lambda d=direction: with_gradient(soft_target_loss, student, teacher, d),
                "torch.compile": lambda d=direction: with_gradient(compiled, student, teacher, d),
                **versions,
            }  # fmt: skip

        def check(direction=direction, versions=versions):
            part = slice(0, 16)  # the reference in float32 would take 16 GB for all
            want = with_gradient(reference, student[part].float(), teacher[part].float(), direction)
            close(next(iter(versions.values()))()[part].float() * (samples / 16), want, 5e-3)

        # Both logits twice, the gradient once; some four exponentials a number.
        yield Case(
            "soft_target_loss", f"{samples}×{classes} {direction}", "bf16" if on_gpu else "fp32", versions, check,
            5 * student.nbytes, 40 * samples * classes, "fp32", ("kernel", "torch.compile", "reference"),
        )  # fmt: skip
