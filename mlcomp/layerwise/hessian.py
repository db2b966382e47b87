r"""The Hessian of the layer-wise problem, and its inverse made safe.

Notation: X inputs (inp, samples), $H = 2 X X^\top$; the error of a row is
$\lVert wX - \hat wX \rVert^2 = \tfrac12\, \delta w\, H\, \delta w^\top$ with $\delta w = \hat w - w$.
Source: Frantar, Singh, Alistarh 2022, arXiv:2208.11580, section 3.   Syllabus: 2.01
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mlcomp.checks import check_hessian, check_interval, check_tensor, check_values, row_blocks
from mlcomp.context import isolated

# Rows of H that are taken together. H is symmetric: what lies left of such a panel's own square is a panel's above.
PANEL = 256


@isolated
def layer_hessian(inputs: Float[Tensor, "inp samples"]) -> Float[Tensor, "inp inp"]:
    r"""Return $H = 2 X X^\top$ of a linear layer's inputs, in float32 (float64 for float64 inputs).

    Args:
        inputs: (inp, samples), one column a sample; not modified.
    Returns:
        (inp, inp), symmetric, positive semidefinite up to rounding.
    Raises:
        ValueError: not a matrix, no samples, NaN or inf.
    Cost: 2·inp²·samples FLOPs.
    """
    check_tensor("inputs", inputs)
    if inputs.ndim != 2 or inputs.numel() == 0:
        raise ValueError(f"inputs must be (inp, samples) with at least one sample, got {tuple(inputs.shape)}")
    check_values("inputs", inputs)
    x = inputs if inputs.dtype == torch.float64 else inputs.float()
    return 2 * (x @ x.T)


@isolated
def output_loss(
    delta: Float[Tensor, "*groups out inp"], hessian: Float[Tensor, "*groups inp inp"]
) -> Float[Tensor, "*groups out"]:
    r"""Return $\delta_i H \delta_i^\top = 2\,\lVert \delta_i X \rVert^2$ of each row i.

    Its sum is $\mathrm{tr}(\delta H \delta^\top)$.

    Args:
        delta: Ŵ − W, in the dtype of ``hessian``, in which all is computed; a gradient passes through.
        hessian: symmetric; only what lies on and right of its squares of PANEL columns is read.
    Cost: out·inp² FLOPs, and a panel more.
    """
    loss = delta.new_zeros(())
    for start in range(0, delta.shape[-1], PANEL):
        own, later = delta[..., start : start + PANEL], delta[..., start + PANEL :]
        pulled = own @ hessian[..., start : start + PANEL, start:]
        size = own.shape[-1]
        loss = loss + (pulled[..., :size] * own).sum(-1) + 2 * (pulled[..., size:] * later).sum(-1)
    return loss


@dataclass(frozen=True)
class DampedHessian:
    """The damped Hessian, (inp, inp) float64; rows and columns of dead inputs hold the identity.

    ``damping`` is the absolute number that was added to the diagonal, [units of H].
    """

    matrix: Float[Tensor, "inp inp"]
    dead: Bool[Tensor, " inp"]
    damping: float


@isolated
def damped_hessian(hessian: Float[Tensor, "inp inp"], *, damp: float = 0.0) -> DampedHessian:
    r"""Return $H + \lambda I$, $\lambda$ = ``damp`` · mean live diagonal, in float64, made exactly symmetric.

    A dead input has a zero diagonal: it was never active in the calibration set. Damping is relative, so results do
    not depend on the units of X.

    Args:
        hessian: (inp, inp), symmetric, positive semidefinite, float32 or float64; not modified.
        damp: share of the mean diagonal over live inputs that is added to the diagonal, ≥ 0.
    Raises:
        ValueError: H is malformed or ``damp`` negative.
    """
    hessian = check_hessian(hessian)
    check_interval("damp", damp, "[0, inf)")
    h = _symmetric(hessian)
    diagonal = h.diagonal()
    dead = diagonal == 0
    damping = damp * float(diagonal[~dead].mean()) if not dead.all() else 0.0
    diagonal += damping
    if dead.any():
        h[dead, :] = 0
        h[:, dead] = 0
        h[dead, dead] = 1
    return DampedHessian(h, dead, damping)


def _symmetric(matrix: Tensor) -> Tensor:
    """Return (M + Mᵀ)/2 in float64."""
    result = torch.empty_like(matrix, dtype=torch.float64)
    for i in row_blocks(matrix):
        mean = (matrix[i, i.start :].double() + matrix[i.start :, i].T).div_(2)
        result[i, i.start :] = mean
        result[i.start :, i] = mean.T
    return result


@dataclass(frozen=True)
class InverseHessian:
    """Inverse of the damped Hessian over the live inputs.

    ``inverse`` is (inp, inp); rows and columns of dead inputs hold the identity. ``damping`` is the absolute
    number that was added to the diagonal, [units of H].
    """

    inverse: Float[Tensor, "inp inp"]
    dead: Bool[Tensor, " inp"]
    damping: float


@isolated
def inverse_hessian(hessian: Float[Tensor, "inp inp"], *, damp: float = 0.0) -> InverseHessian:
    r"""Invert $H + \lambda I$, $\lambda$ = ``damp`` · mean live diagonal, in float64.

    A dead input (zero diagonal: never active in the calibration set) cannot change the output; callers set
    its weights to zero. Damping is relative, so results do not depend on the units of X.

    Args:
        hessian: (inp, inp), symmetric, positive semidefinite, float32 or float64; not modified.
        damp: share of the mean diagonal over live inputs that is added to the diagonal, ≥ 0.
    Returns:
        The inverse (float64), the dead inputs, and the damping that was used.
    Raises:
        ValueError: H is malformed, ``damp`` negative, or H + λI is not positive definite (fewer samples than
            inputs, and no damping) beyond the rounding of H's own dtype: the message says which damping would do.
    """
    damped = damped_hessian(hessian, damp=damp)
    h = damped.matrix
    factor, info = torch.linalg.cholesky_ex(h)
    inverse = torch.cholesky_inverse(factor) if not int(info) else None
    check_regular(h.diagonal(), None if inverse is None else inverse.diagonal(), damp=damp, dtype=hessian.dtype)
    assert inverse is not None
    return InverseHessian(inverse, damped.dead, damped.damping)


def check_regular(
    diagonal: Float[Tensor, " inp"], inverse: Float[Tensor, " inp"] | None, *, damp: float, dtype: torch.dtype
) -> None:
    """Raise if a Hessian is not positive definite beyond the rounding of ``dtype``, in which it was summed.

    Args:
        diagonal: of H with the damping ``damp``, float64.
        inverse: the diagonal of its inverse; None: it has none.
    """
    # A rank-deficient H may pass Cholesky by rounding, and its "inverse" then is noise. Scaled to a unit diagonal,
    # the inverse has a trace of about 1/λ_min. The λ_min that rounding alone leaves is a few eps of the dtype in
    # which X·Xᵀ was summed (below 4 in experiments), or n·eps of the factorization.
    eps = torch.finfo(dtype).eps
    smallest = max(10 * eps, len(diagonal) * torch.finfo(diagonal.dtype).eps)
    if inverse is None or not float((inverse * diagonal).sum()) * smallest < 1:
        raise ValueError(
            f"the Hessian of {len(diagonal)} inputs is singular (damp={damp}): use more calibration samples than "
            f"inputs, or a positive damp; 0.01 is usual, 0.1 to 1 when samples are fewer than inputs"
        )


@dataclass
class SharedHessian:
    """An H that several layers have, and what was last computed of it."""

    hessian: Float[Tensor, "inp inp"]
    results: dict[Hashable, tuple[Tensor, ...]] = field(default_factory=dict)


_SHARED: ContextVar[SharedHessian | None] = ContextVar("shared", default=None)


@contextmanager
def sharing(shared: SharedHessian | None) -> Iterator[None]:
    """Within this, what :func:`computed_once` is asked about that H is computed for the first layer alone."""
    token = _SHARED.set(shared)
    try:
        yield
    finally:
        _SHARED.reset(token)


def computed_once(
    hessian: Float[Tensor, "inp inp"], key: Hashable, compute: Callable[[], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """Return ``compute()``, or copies of what it returned for the same H and key; only the last key is kept.

    H is compared number by number, so that whatever happened to the tensor does not matter.
    """
    shared = _SHARED.get()
    if shared is None or hessian.dtype != shared.hessian.dtype or not torch.equal(hessian, shared.hessian):
        return compute()
    found = shared.results.get(key)
    if found is None:
        found = compute()
        shared.results = {key: found}
    return tuple(x.clone() for x in found)
