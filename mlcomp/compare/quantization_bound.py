r"""How good can any codes be? A certified lower bound on a row's output error, by semidefinite programming.

Notation: H = 2XXᵀ, t target in units of the step, x codes in {0 … L − 1}, f(x) = ½(x−t)ᵀH(x−t).
No code lies strictly between two neighbours k and k + 1, and none outside the box, so for all codes

$$(x_i-k)(x_i-k-1) \ge 0 \quad (k = 0 \dots L-2), \qquad x_i\,(L-1-x_i) \ge 0 .$$

Multiply them by $\lambda_{ik}, \mu_i \ge 0$ and take them off f: what is left is a quadratic function
$x^\top A x + 2 b^\top x + c \le f(x)$ at every code, and its minimum over all real x, which is $c - \gamma$ with the
least γ that makes $[[A, b],[b^\top, \gamma]] \succeq 0$, bounds f from below. The programme looks for the multipliers
with the largest bound.

Source: Park and Boyd 2018, arXiv:1504.07672, section 3 (one k for each coordinate, no box), used by Kuzmin et al.
2023, arXiv:2307.02973, section 4.   Syllabus: 1.22
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import check_like, check_whole
from mlcomp.compare.integer_least_squares import check_problem
from mlcomp.context import isolated
from mlcomp.extras import need


@dataclass(frozen=True)
class QuantizationBound:
    """A lower bound on f over all codes, and the multipliers that prove it (checked in exact arithmetic).

    ``between`` is (inp, levels − 1), λ of the gap from k to k + 1; ``box`` is (inp,), μ.
    """

    value: float
    between: Float[Tensor, "inp gaps"]
    box: Float[Tensor, " inp"]


@isolated
def quantization_bound(
    hessian: Float[Tensor, "inp inp"], target: Float[Tensor, " inp"], *, levels: int, gaps: int | None = None
) -> QuantizationBound:
    r"""Return a proved lower bound on $\tfrac12 (x-t)^\top H (x-t)$ over the codes {0 … levels − 1}.

    Args:
        hessian: (inp, inp), semidefinite or not (the box makes any H lawful); not modified.
        target: (inp,); not modified.
        levels: number of codes, 2 to 256.
        gaps: use only so many gaps, the nearest to the target's coordinate; None: 16 or all there are. One gap and
            no active box is the programme of the lecture.
    Raises:
        ValueError: malformed H or target, bad levels or gaps. ImportError: Clarabel is not installed.
        RuntimeError: the solver's multipliers are not finite or prove nothing, even after repair (not seen).
    Guarantee: the value is a lower bound for the H and t given, whatever the solver answered: see :func:`certify`.
        It misses the programme's best by less than 1e-6 of 1 + f at the best codes (2e-7 was the worst of 3000 random
        problems of up to 9 inputs), by more where H is singular.
    Cost: 64 inputs at 4 bits take about 20 seconds, 32 half a second.
    """
    check_problem(hessian, target, levels)
    h, t = _in_float64(hessian, target)
    inp = len(t)
    if gaps is not None:
        check_whole("gaps", gaps, 1, levels - 1)
    count = min(16, levels - 1) if gaps is None else gaps
    # The first of ``count`` consecutive gaps whose middle is nearest to the target.
    first = np.clip(np.round(t - count / 2), 0, levels - 1 - count).astype(int)
    columns = first[:, None] + np.arange(count)
    scale = float(np.abs(np.diag(h)).max()) or 1.0
    some, box = _solve(h / scale, t, columns, levels)
    between = np.zeros((inp, levels - 1))
    np.put_along_axis(between, columns, some * scale, axis=1)
    between, box = np.maximum(between, 0), np.maximum(box * scale, 0)
    if not (np.isfinite(between).all() and np.isfinite(box).all()):
        raise RuntimeError("the solver broke down: its multipliers hold NaN or infinity")
    # Dust that an interior point leaves on gaps far from the target costs dust · distance² and proves nothing.
    between[between < 1e-9 * scale] = 0
    bound = _proved(hessian, target, between, box, levels, scale)
    if bound is None:
        raise RuntimeError("the solver's multipliers are no proof of any bound, even with more box added")
    if bound.value < 0:  # a singular H: the solver may end below the 0 that no multipliers at all prove
        least = _proved(hessian, target, 0 * between, 0 * box, levels, scale)
        if least is not None and least.value > bound.value:
            return least
    return bound


def _proved(
    hessian: Tensor, target: Tensor, between: np.ndarray, box: np.ndarray, levels: int, scale: float
) -> QuantizationBound | None:
    """Return what the multipliers prove with as much more box as they need for it; None if they prove nothing.

    An interior point ends a little inside or outside of the cone: more box makes A definite, at a cost that is
    proportional. The first shift that passes the exact test is taken.
    """
    lam = torch.from_numpy(between)
    for shift in (0.0, 1e-12, 1e-11, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4):
        mu = torch.from_numpy(box + shift * scale)
        value = certify(hessian, target, lam, mu, levels=levels)
        if value > -math.inf:
            return QuantizationBound(value, lam, mu)
    return None


@isolated
def certify(
    hessian: Float[Tensor, "inp inp"],
    target: Float[Tensor, " inp"],
    between: Float[Tensor, "inp gaps"],
    box: Float[Tensor, " inp"],
    *,
    levels: int,
) -> float:
    r"""Return the lower bound that multipliers prove, in exact rational arithmetic; −∞ if they prove none.

    Every float is a fraction of whole numbers. A is positive definite if and only if its leading principal minors
    are positive (Sylvester), fraction-free elimination (Bareiss) yields them, and
    $c - b^\top A^{-1} b = c + \det [[A, b],[b^\top, 0]] / \det A$. Only the last line rounds, downwards.

    Args:
        hessian, target, levels: as for :func:`quantization_bound`.
        between: (inp, levels − 1) multipliers λ ≥ 0.
        box: (inp,) multipliers μ ≥ 0.
    Raises:
        ValueError: malformed H or target, or a negative multiplier.
    """
    check_problem(hessian, target, levels)
    h, t = _in_float64(hessian, target)
    check_like("between", between, (len(t), levels - 1), "the inputs and the gaps between levels")
    check_like("box", box, (len(t),), "the inputs")
    for name, multipliers in (("between", between), ("box", box)):
        if bool((multipliers < 0).any()):
            raise ValueError(f"{name} holds negative multipliers, which prove nothing")
    matrix, constant = _lagrangian(h, t, between.detach().double().numpy(), box.detach().double().numpy(), levels)
    common = math.lcm(*(entry.denominator for row in matrix for entry in row))
    minors = _minors([[int(entry * common) for entry in row] for row in matrix])
    if minors is None:
        return -math.inf
    # Minors of common·M: one factor common too many in the numerator.
    exact = constant + Fraction(minors[-1], minors[-2] * common)
    value = float(exact)
    return value if Fraction(value) <= exact else math.nextafter(value, -math.inf)


def _in_float64(hessian: Tensor, target: Tensor) -> tuple[np.ndarray, np.ndarray]:
    h = hessian.detach().double()
    return ((h + h.T) / 2).numpy(), target.detach().double().numpy()


def _lagrangian(
    h: np.ndarray, t: np.ndarray, between: np.ndarray, box: np.ndarray, levels: int
) -> tuple[list[list[Fraction]], Fraction]:
    """Return [[A, b],[bᵀ, 0]] and c as exact fractions."""
    n, top = len(t), levels - 1
    exact_h = [[Fraction(v) / 2 for v in row] for row in h.tolist()]
    exact_t = [Fraction(v) for v in t.tolist()]
    zero = Fraction(0)
    pull = [sum((a * b for a, b in zip(row, exact_t, strict=True)), zero) for row in exact_h]  # ½Ht
    constant = sum((p * v for p, v in zip(pull, exact_t, strict=True)), zero)
    matrix = [[*row, -p] for row, p in zip(exact_h, pull, strict=True)]
    for i in range(n):
        mu = Fraction(float(box[i]))
        used = {k: Fraction(float(between[i, k])) for k in range(top) if between[i, k] > 0}
        matrix[i][i] += mu - sum(used.values(), zero)
        matrix[i][n] += (sum((lam * (2 * k + 1) for k, lam in used.items()), zero) - mu * top) / 2
        constant -= sum((lam * k * (k + 1) for k, lam in used.items()), zero)
    return [*matrix, [*(row[n] for row in matrix), zero]], constant


def _minors(m: list[list[int]]) -> list[int] | None:
    """Return the leading principal minors of a symmetric integer matrix; None if one but the last is not positive."""
    size, before, minors = len(m), 1, []
    for k in range(size):
        pivot = m[k][k]
        minors.append(pivot)
        if k == size - 1:
            return minors
        if pivot <= 0:
            return None
        for i in range(k + 1, size):
            for j in range(i, size):
                m[i][j] = m[j][i] = (m[i][j] * pivot - m[k][i] * m[k][j]) // before  # exact: Bareiss 1968
        before = pivot
    return minors


def _solve(h: np.ndarray, t: np.ndarray, columns: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Solve the programme with Clarabel: maximize c − γ; returns λ (inp, gaps) and μ (inp,), as the solver left them.

    Codes are counted from the nearest code to the target, so that the numbers stay small.
    """
    clarabel, sparse = need("clarabel", "notebooks"), need("scipy.sparse", "notebooks")
    n, count = columns.shape
    origin = np.clip(np.round(t), 0, levels - 1)
    shifted, low, high = t - origin, -origin, levels - 1 - origin
    k = columns - origin[:, None]
    # Unknowns: λ (n·count), μ (n), γ. Every entry of M = [[A, b],[bᵀ, γ]] is affine in them.
    unknowns, size = n * count + n + 1, n + 1
    rows, cols = np.triu_indices(size)
    by_column = np.lexsort((rows, cols))  # the solver's order: upper triangle, column after column
    rows, cols = rows[by_column], cols[by_column]
    root2 = np.where(rows == cols, 1.0, math.sqrt(2))
    where = np.zeros((size, size), dtype=int)
    where[rows, cols] = np.arange(len(rows))
    i = np.arange(n)
    diagonal, border = where[i, i], where[i, n]
    each = np.repeat(i, count)
    entries = [  # (row of the cone, unknown, coefficient in M)
        (diagonal[each], np.arange(n * count), -np.ones(n * count)),
        (border[each], np.arange(n * count), (2 * k + 1).flatten() / 2),
        (diagonal, n * count + i, np.ones(n)),
        (border, n * count + i, -(low + high) / 2),
        (np.array([where[n, n]]), np.array([unknowns - 1]), np.ones(1)),
    ]
    at, which, value = (np.concatenate(part) for part in zip(*entries, strict=True))
    cone = sparse.csc_matrix((-value * root2[at], (at, which)), shape=(len(rows), unknowns))
    fixed = np.zeros((size, size))
    fixed[:n, :n] = h / 2
    fixed[:n, n] = -h @ shifted / 2
    positive = -sparse.eye(unknowns - 1, unknowns, format="csc")
    cost = np.concatenate([(k * (k + 1)).flatten(), -low * high, [1.0]]).astype(float)
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    # A hundredth of the defaults: what the solver misses of the cone is paid for in box over every input.
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-10
    solver = clarabel.DefaultSolver(
        sparse.csc_matrix((unknowns, unknowns)),
        cost,
        sparse.vstack([positive, cone], format="csc"),
        np.concatenate([np.zeros(unknowns - 1), fixed[rows, cols] * root2]),
        [clarabel.NonnegativeConeT(unknowns - 1), clarabel.PSDTriangleConeT(size)],
        settings,
    )
    answer = np.array(solver.solve().x)
    return answer[: n * count].reshape(n, count), answer[n * count : -1]
