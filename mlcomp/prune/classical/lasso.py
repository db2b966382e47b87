r"""Lasso: least squares with a price on the absolute coefficients, by coordinate descent.

Notation: X features (samples, p), y targets, β coefficients, r = y − Xβ, λ the penalty; the lecture's objective is
$P(\beta) = \lVert y - X\beta\rVert^2 + \lambda\sum_j|\beta_j|$. (scikit-learn's α is λ/(2·samples).)
Source: Tibshirani 1996, Regression Shrinkage and Selection via the Lasso; Friedman, Hastie, Tibshirani 2010,
Regularization Paths for Generalized Linear Models via Coordinate Descent, section 2.   Syllabus: 3.01
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import check_interval, check_matrix, check_vector, check_whole
from mlcomp.context import isolated


@dataclass(frozen=True)
class Lasso:
    """A lasso fit.

    Attributes:
        coefficients: (p,) float64; zeros are exact.
        gap: the objective is at most this far above its least value (the duality gap).
        sweeps: passes over all coordinates.
    """

    coefficients: Float[Tensor, " p"]
    gap: float
    sweeps: int


@dataclass(frozen=True)
class LassoPath:
    """Lasso fits for falling penalties.

    Attributes:
        penalties: (steps,) float64, falling.
        coefficients: (steps, p) float64.
        order: features in the order in which they first enter; those that enter in one step by their number.
        gaps: (steps,) as in :class:`Lasso`.
    """

    penalties: Float[Tensor, " steps"]
    coefficients: Float[Tensor, "steps p"]
    order: list[int]
    gaps: Float[Tensor, " steps"]


@isolated
def lasso(
    features: Float[Tensor, "samples p"],
    targets: Float[Tensor, " samples"],
    *,
    penalty: float,
    start: Float[Tensor, " p"] | None = None,
    tolerance: float = 1e-9,
    max_sweeps: int = 2000,
) -> Lasso:
    r"""Minimize $\lVert y - X\beta\rVert^2 + \lambda\sum_j|\beta_j|$: one coordinate at a time, each exactly.

    With the others fixed, $\beta_j = S(x_j^\top r_{-j}, \lambda/2)/\lVert x_j\rVert^2$, where $r_{-j}$ is the
    residual without feature j and $S(z, t) = \mathrm{sign}(z)\max(|z| - t, 0)$. At λ ≥ 2·max|Xᵀy| all are zero.

    Args:
        features: (samples, p); not modified. There is no intercept: centre features and targets first.
        targets: (samples,); not modified.
        penalty: λ ≥ 0.
        start: (p,) where to begin; None: at zero.
        tolerance: stop at a duality gap of this share of ‖y‖².
        max_sweeps: stop there in any case; ``gap`` says what is missing.
    Raises:
        ValueError: malformed arguments, lengths that differ.
    Guarantee: P is at most ``gap`` above its minimum. A feature that is zero in all samples keeps a coefficient of 0.
    Cost: samples·p² once, then p² a sweep. Correlated features take many sweeps.
    """
    check_matrix("features", features)
    check_vector("targets", targets)
    check_interval("penalty", penalty, "[0, inf)")
    check_interval("tolerance", tolerance, "[0, 1]")
    check_whole("max_sweeps", max_sweeps, 1)
    if len(features) != len(targets):
        raise ValueError(f"features and targets must have the same samples, got {len(features)} and {len(targets)}")
    x, y = features.detach().double(), targets.detach().double()
    beta = x.new_zeros(x.shape[1])
    if start is not None:
        check_vector("start", start)
        if len(start) != len(beta):
            raise ValueError(f"start must have {len(beta)} coefficients, got {len(start)}")
        beta = start.detach().to(beta).masked_fill((x == 0).all(0), 0)
    return _descend(x, y, float(penalty), beta, tolerance * float(y @ y), max_sweeps)


def _descend(x: Tensor, y: Tensor, penalty: float, beta: Tensor, gap_allowed: float, max_sweeps: int) -> Lasso:
    gram, squares = x.T @ x, x.square().sum(0)
    slope = x.T @ (y - x @ beta)  # Xᵀr, kept up to date
    sweeps, gap = 0, _gap(x, y, beta, penalty)
    live = squares.nonzero().flatten().tolist()
    sizes, values = squares.tolist(), beta.tolist()  # plain numbers: a tensor operation costs more than they do
    while gap > gap_allowed and sweeps < max_sweeps:
        largest = 0.0  # decrease of the objective by one coordinate, at least
        for j in live:
            z = float(slope[j]) + sizes[j] * values[j]
            new = math.copysign(max(abs(z) - penalty / 2, 0.0), z) / sizes[j]
            if new != values[j]:
                largest = max(largest, sizes[j] * (new - values[j]) ** 2)
                slope.sub_(gram[j], alpha=new - values[j])
                values[j] = new
        sweeps += 1
        if largest <= gap_allowed or sweeps == max_sweeps:
            beta = beta.new_tensor(values)
            gap = _gap(x, y, beta, penalty)
    return Lasso(beta, gap, sweeps)


def _gap(x: Tensor, y: Tensor, beta: Tensor, penalty: float) -> float:
    r"""Return P(β) − D(θ), $D(\theta) = 2\theta^\top y - \lVert\theta\rVert^2$, with r shrunk to a feasible θ."""
    residual = y - x @ beta
    steepest = 2 * float((x.T @ residual).abs().max())
    # D bounds P from below wherever 2|Xᵀθ| ≤ λ.
    theta = residual * (min(1.0, penalty / steepest) if steepest else 1.0)
    primal = residual @ residual + penalty * beta.abs().sum()
    return max(0.0, float(primal - 2 * theta @ y + theta @ theta))


@isolated
def lasso_path(
    features: Float[Tensor, "samples p"],
    targets: Float[Tensor, " samples"],
    *,
    steps: int = 50,
    smallest: float = 1e-3,
    tolerance: float = 1e-9,
    max_sweeps: int = 2000,
) -> LassoPath:
    r"""Return fits for penalties that fall evenly on a log axis from $2\max_j|x_j^\top y|$, where all is zero.

    Args:
        features, targets, tolerance, max_sweeps: as in :func:`lasso`; each fit starts from the one before.
        steps: penalties, two at least.
        smallest: the last penalty, as a share of the first, inside (0, 1).
    Raises:
        ValueError: malformed arguments, or targets that no feature is correlated with: then no penalty is needed.
    Guarantee: as :func:`lasso` at each penalty.
    """
    check_matrix("features", features)
    check_vector("targets", targets)
    check_whole("steps", steps, 2)
    check_interval("smallest", smallest, "(0, 1)")
    if len(features) != len(targets):
        raise ValueError(f"features and targets must have the same samples, got {len(features)} and {len(targets)}")
    largest = 2 * float((features.detach().double().T @ targets.detach().double()).abs().max())
    if not largest:
        raise ValueError("targets must be correlated with a feature, or all coefficients are zero at every penalty")
    penalties = largest * smallest ** (torch.arange(steps, dtype=torch.float64) / (steps - 1))
    fits: list[Lasso] = []
    for penalty in penalties.tolist():
        start = fits[-1].coefficients if fits else None
        fits.append(
            lasso(features, targets, penalty=penalty, start=start, tolerance=tolerance, max_sweeps=max_sweeps)
        )
    coefficients = torch.stack([fit.coefficients for fit in fits])
    inside = (coefficients != 0).double()
    entered = [j for j in inside.argmax(0).argsort(stable=True).tolist() if inside[:, j].any()]
    return LassoPath(penalties, coefficients, entered, torch.tensor([fit.gap for fit in fits], dtype=torch.float64))
