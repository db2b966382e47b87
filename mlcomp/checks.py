"""Checks of arguments that every method shares: a bad input is a clear error before any work."""

import math

import torch
from torch import Tensor


def check_weight(weight: Tensor) -> None:
    """Raise unless ``weight`` is a finite floating-point matrix (out, inp) with at least one entry."""
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a torch.Tensor, got {type(weight).__name__}")
    if weight.ndim != 2 or weight.numel() == 0:
        raise ValueError(f"weight must be a non-empty matrix (out, inp), got shape {tuple(weight.shape)}")
    if not weight.is_floating_point():
        raise TypeError(f"weight must be floating point, got {weight.dtype}")
    check_finite("weight", weight)


def check_finite(name: str, x: Tensor) -> None:
    """Raise if ``x`` holds NaN or infinity."""
    if not torch.isfinite(x).all():
        bad = int((~torch.isfinite(x)).sum())
        raise ValueError(f"{name} holds {bad} NaN or infinite value(s) of {x.numel()}")


def check_bits(bits: int) -> None:
    """Raise unless ``bits`` is a whole number from 1 to 8."""
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
        raise ValueError(f"bits must be a whole number from 1 to 8, got {bits!r}")


def check_sparsity(sparsity: float) -> None:
    """Raise unless ``sparsity`` (the share of weights set to zero) lies in [0, 1]."""
    if not 0.0 <= sparsity <= 1.0:  # False for NaN, too
        raise ValueError(f"sparsity is the share of zeros and must lie in [0, 1], got {sparsity!r}")


def check_pattern(pattern: object) -> None:
    """Raise unless ``pattern`` is (n, m): n zeros in every m consecutive inputs, 0 ≤ n ≤ m, m ≥ 1."""
    pair = pattern if isinstance(pattern, tuple) and len(pattern) == 2 else (-1, -1)
    if not all(isinstance(v, int) for v in pair) or not (pair[1] >= 1 and 0 <= pair[0] <= pair[1]):
        raise ValueError(f"pattern must be (n, m) with 0 ≤ n ≤ m (n zeros in every m inputs), got {pattern!r}")


def check_target(sparsity: float | None, pattern: tuple[int, int] | None) -> None:
    """Raise unless exactly one of ``sparsity`` and ``pattern`` is given, and it is valid."""
    if (sparsity is None) == (pattern is None):
        raise ValueError(f"give exactly one of sparsity and pattern, got {sparsity=} and {pattern=}")
    if sparsity is not None:
        check_sparsity(sparsity)
    else:
        check_pattern(pattern)


def check_group_size(group_size: int | None, inp: int) -> None:
    """Raise unless ``group_size`` is None or divides the number of inputs."""
    if group_size is None:
        return
    if not isinstance(group_size, int) or group_size < 1 or inp % group_size:
        raise ValueError(f"group_size must divide the {inp} inputs, got {group_size!r}")


def check_hessian(hessian: Tensor, inp: int) -> None:
    """Raise unless ``hessian`` is a finite symmetric (inp, inp) float32 or float64 matrix, diagonal ≥ 0."""
    if not isinstance(hessian, Tensor):
        raise TypeError(f"hessian must be a torch.Tensor, got {type(hessian).__name__}")
    if hessian.shape != (inp, inp):
        raise ValueError(
            f"hessian must be ({inp}, {inp}) to match a weight with {inp} inputs, got {tuple(hessian.shape)}"
        )
    if hessian.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"hessian must be float32 or float64, got {hessian.dtype}")
    check_finite("hessian", hessian)
    scale = float(hessian.abs().max())
    # X·Xᵀ accumulated in float32 is symmetric up to rounding; anything beyond is another matrix.
    skew = float((hessian - hessian.T).abs().max())
    if skew > 1e-4 * scale:
        raise ValueError(f"hessian must be symmetric: max |H − Hᵀ| = {skew:.3g} at a scale of {scale:.3g}")
    if float(hessian.diagonal().min()) < 0:
        raise ValueError("hessian has a negative diagonal entry, so it is not 2·X·Xᵀ of any inputs X")


def removals(sparsity: float, size: int) -> int:
    """Return how many of ``size`` weights to remove for a share ``sparsity``: rounded half up, exact at 0 and 1."""
    return min(size, math.floor(sparsity * size + 0.5))
