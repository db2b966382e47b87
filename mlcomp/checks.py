"""Checks of arguments that every method shares: a bad input is a clear error before any work.

Each kind of check is stated once; every message says what was given and what is allowed.
"""

import math
import weakref
from collections.abc import Callable, Iterable
from numbers import Real

import torch
from torch import Tensor

# The largest number of a weight, and of what is squared in its own dtype: sums stay in the range of float32 (narrower
# dtypes are computed in it). In float64 sums of fourth powers do.
LARGEST, LARGEST_SQUARED, LARGEST_FLOAT64 = 1e36, 1e15, 1e60


def check_whole(name: str, value: int, low: int, high: int | None = None) -> None:
    """Raise unless ``value`` is a whole number (no bool) from ``low`` to ``high``, without end where that is None."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        allowed = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} must be a whole number {allowed}, got {value!r}")


def check_divides(name: str, value: int, inp: int) -> None:
    """Raise unless ``value`` is a whole number that divides the number of inputs."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or inp % value:
        raise ValueError(f"{name} must divide the {inp} inputs, got {value!r}")


def check_interval(name: str, value: float | int, interval: str) -> None:
    """Raise unless ``value`` is a number in ``interval``: "[0, 1]", "(0, 1]", "(0, inf)", …; NaN never is."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    inside = isinstance(value, Real) and not isinstance(value, bool) and low <= value <= high
    at_open_end = (value == low and interval[0] == "(") or (value == high and interval[-1] == ")")
    if not inside or at_open_end:
        raise ValueError(f"{name} must lie in {interval}, got {value!r}")


def check_positive(name: str, value: float | int) -> None:
    """Raise unless ``value`` is a positive, finite number."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value!r}")


def check_choice(name: str, value: str, allowed: Iterable[str]) -> None:
    """Raise unless ``value`` is one of some words."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def check_dtype(name: str, dtype: torch.dtype, allowed: Iterable[torch.dtype]) -> None:
    """Raise unless ``dtype`` is one of ``allowed``."""
    if dtype not in allowed:
        raise TypeError(f"{name} must be one of {', '.join(map(str, allowed))}, got {dtype}")


def check_tensor(name: str, x: Tensor, *, float8: bool = False) -> None:
    """Raise unless ``x`` is an ordinary tensor: dense, in memory, of real numbers that torch can compute with.

    It can't with ``float8``, which is for those who only convert it.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if x.is_meta:
        raise TypeError(f"{name} must hold values, got a tensor on the meta device: load the weights first")
    if x.is_nested:
        raise TypeError(f"{name} must be a dense tensor, got a nested one: pass each part, or .to_padded_tensor(0.0)")
    if x.is_quantized:
        raise TypeError(f"{name} must hold plain numbers, got {x.dtype}: pass {name}.dequantize()")
    if x.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {x.layout}: pass {name}.to_dense()")
    if x.is_complex():
        raise TypeError(f"{name} must hold real numbers, got {x.dtype}: pass its real part or its magnitude")
    if not float8 and x.is_floating_point() and x.element_size() < 2:
        raise TypeError(f"{name} must have at least 16 bits a number, got {x.dtype}: pass {name}.float()")


def check_floating(name: str, x: Tensor, *, float8: bool = False) -> None:
    """Raise unless ``x`` is an ordinary floating-point tensor; ``float8`` as in :func:`check_tensor`."""
    check_tensor(name, x, float8=float8)
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {x.dtype}: pass {name}.float()")


def check_finite(name: str, x: Tensor) -> None:
    """Raise unless ``x`` is an ordinary tensor without NaN and infinity."""
    check_tensor(name, x)
    if not all_finite(x):
        bad = int((~torch.isfinite(x)).sum())
        raise ValueError(f"{name} holds {bad} NaN or infinite value(s) of {x.numel()}")


def all_finite(x: Tensor) -> bool:
    """Return whether ``x`` holds neither NaN nor infinity."""
    # A finite sum has finite terms, and takes one look at each; one that is not may have left the range.
    return bool(torch.isfinite(x.sum())) or bool(torch.isfinite(x).all())


def check_size(name: str, x: Tensor, *, squared: bool = True) -> None:
    """Raise if ``x``, which is finite, holds numbers whose sums or squares leave the range they are computed in.

    The largest may be 1e15, or 1e36 if it is not ``squared`` in float32; in float64 it may be 1e60, and there not
    below 1e-60 unless all are zero. (In float32 small numbers do no harm: float64 holds their products.)
    """
    largest = _largest(x.detach())
    wide = x.dtype == torch.float64
    high, low = (LARGEST_FLOAT64, 1 / LARGEST_FLOAT64) if wide else (LARGEST_SQUARED if squared else LARGEST, 0.0)
    if largest > high or 0 < largest < low:
        allowed = f"at most {high:g}" if largest > high else f"at least {low:g}, or zero,"
        raise ValueError(
            f"{name} must be {allowed} in size, got {largest:.3g}: what is computed from it would leave the range "
            f"of {x.dtype}; divide it by a constant"
        )


def _largest(x: Tensor) -> float:
    """Return max |x|, 0 of nothing, without a copy of ``x``."""
    low, high = torch.aminmax(x) if x.numel() else (0.0, 0.0)
    return max(-float(low), float(high))


def check_values(name: str, x: Tensor, *, squared: bool = True) -> None:
    """Raise unless ``x`` can be computed with: floating point, finite, and of a size as in :func:`check_size`."""
    check_floating(name, x)
    check_finite(name, x)
    check_size(name, x, squared=squared)


def check_codes(name: str, codes: Tensor, top: int) -> None:
    """Raise unless ``codes`` are whole numbers from 0 to ``top``; there may be none."""
    check_tensor(name, codes)
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise TypeError(f"{name} must be whole numbers of an integer dtype, got {codes.dtype}")
    wide = codes.dtype in (torch.uint16, torch.uint32, torch.uint64)  # torch finds no extremes of these
    low, high = torch.aminmax(codes.long() if wide else codes) if codes.numel() else (0, 0)
    if low < 0 or high > top:
        raise ValueError(f"{name} must lie in 0 … {top}, got {int(low)} … {int(high)}")


def check_like(name: str, x: Tensor, shape: tuple[int, ...], like: str) -> None:
    """Raise unless ``x`` is a finite floating-point tensor of this shape; ``like`` says what it must fit."""
    check_floating(name, x)
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f"{name} must be {tuple(shape)} like {like}, got {tuple(x.shape)}")
    check_values(name, x, squared=False)


def check_matrix(name: str, x: Tensor, *, squared: bool = True) -> None:
    """Raise unless ``x`` is a floating-point matrix (out, inp) with at least one entry, see :func:`check_values`."""
    check_tensor(name, x)
    if x.ndim != 2 or x.numel() == 0:
        raise ValueError(f"{name} must be a non-empty matrix (out, inp), got shape {tuple(x.shape)}")
    check_values(name, x, squared=squared)


def check_weight(weight: Tensor) -> Tensor:
    """Return ``weight`` as values, without gradient; raise unless it is a finite floating-point matrix (out, inp)."""
    check_matrix("weight", weight, squared=False)
    return weight.detach()


def check_vector(name: str, x: Tensor) -> None:
    """Raise unless ``x`` is a finite floating-point vector (inp,) with at least one entry."""
    check_tensor(name, x)
    if x.ndim != 1 or x.numel() == 0:
        raise ValueError(f"{name} must be a vector (inp,) with at least one entry, got shape {tuple(x.shape)}")
    check_values(name, x)


def check_mask(name: str, mask: Tensor, weight: Tensor) -> None:
    """Raise unless ``mask`` is a boolean tensor of the shape of ``weight``."""
    if isinstance(mask, Tensor):
        check_tensor(name, mask)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != weight.shape:
        given = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"{name} must be a boolean tensor of the weight's shape {tuple(weight.shape)}, got {given}")


def check_bits(bits: int) -> None:
    """Raise unless ``bits`` is a whole number from 1 to 8."""
    check_whole("bits", bits, 1, 8)


def check_sparsity(sparsity: float) -> None:
    """Raise unless ``sparsity`` (the share of weights set to zero) lies in [0, 1]."""
    check_interval("sparsity is the share of zeros and", sparsity, "[0, 1]")


def check_pattern(pattern: object) -> None:
    """Raise unless ``pattern`` is (n, m): n zeros in every m consecutive inputs, 0 ≤ n ≤ m, m ≥ 1."""
    pair = pattern if isinstance(pattern, tuple) and len(pattern) == 2 else (-1, -1)
    if not all(type(v) is int for v in pair) or not (pair[1] >= 1 and 0 <= pair[0] <= pair[1]):
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
    if group_size is not None:
        check_divides("group_size", group_size, inp)


# The tensor that check_hessian returned last, which no caller from outside has in hand, and its version. A method
# hands it on to functions that check it, too, and each look at a large matrix takes as long as some of its columns.
_checked: tuple[Callable[[], Tensor | None], int] = (lambda: None, 0)


def check_hessian(hessian: Tensor, inp: int | None = None) -> Tensor:
    """Return ``hessian`` as values, without gradient; raise unless it is one.

    That is a finite symmetric (inp, inp) float32 or float64 matrix, diagonal ≥ 0. Without ``inp`` any size does that
    is not 0.
    """
    check_tensor("hessian", hessian)
    if inp is None and (hessian.ndim != 2 or hessian.numel() == 0):
        raise ValueError(f"hessian must be a non-empty matrix (inp, inp), got shape {tuple(hessian.shape)}")
    inp = len(hessian) if inp is None else inp
    if hessian.shape != (inp, inp):
        raise ValueError(
            f"hessian must be ({inp}, {inp}) to match a weight with {inp} inputs, got {tuple(hessian.shape)}"
        )
    global _checked
    if _checked[0]() is hessian and _checked[1] == hessian._version:  # handed on by whoever had it checked
        return hessian
    check_dtype("hessian", hessian.dtype, (torch.float32, torch.float64))
    check_finite("hessian", hessian)
    hessian = hessian.detach()
    if hessian.dtype == torch.float64:  # products with a float32 one are taken in float64
        check_size("hessian", hessian)
    scale = _largest(hessian)
    # X·Xᵀ accumulated in float32 is symmetric up to rounding; anything beyond is another matrix.
    skew = max(_largest(hessian[i, i.start :] - hessian[i.start :, i].T) for i in row_blocks(hessian))
    if skew > 1e-4 * scale:
        raise ValueError(f"hessian must be symmetric: max |H − Hᵀ| = {skew:.3g} at a scale of {scale:.3g}")
    if float(hessian.diagonal().min()) < 0:
        raise ValueError("hessian has a negative diagonal entry, so it is not 2·X·Xᵀ of any inputs X")
    if not hessian.is_inference():
        _checked = weakref.ref(hessian), hessian._version
    return hessian


def row_blocks(matrix: Tensor) -> list[slice]:
    """Return the rows to take at once beside the columns of the same numbers: on a CPU few, elsewhere all.

    A transposed pass over a whole matrix misses every cache of a processor; a GPU wants few launches.
    """
    step = 64 if matrix.device.type == "cpu" else len(matrix)
    return [slice(first, first + step) for first in range(0, len(matrix), step)]


def removals(sparsity: float, size: int) -> int:
    """Return how many of ``size`` weights to remove for a share ``sparsity``: rounded half up, exact at 0 and 1."""
    return min(size, math.floor(sparsity * size + 0.5))


def narrowed(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a result in the ``dtype`` of what was given; raise where it leaves that range: no silent infinity."""
    result = x.to(dtype)
    if not torch.isfinite(result).all():
        raise ValueError(
            f"the result holds values up to {float(x.detach().abs().max()):.3g}, and {dtype} ends at "
            f"{torch.finfo(dtype).max:.3g}: pass a wider dtype, or what you pass divided by a constant"
        )
    return result
