r"""M-FAC: products with the inverse of an empirical Fisher matrix that is never formed.

Notation: G gradients (m, d), a row $g_i$ each, $F = \lambda I + \tfrac1m\sum_i g_ig_i^\top$, $F_i$ the same with i
gradients only, $v_i = F_{i-1}^{-1}g_i$, $c_i = m + g_i^\top v_i$; so
$F^{-1} = \tfrac1\lambda I - \sum_i v_iv_i^\top/c_i$.
Source: Frantar, Kurtic, Alistarh 2021, arXiv:2107.03356, section 3.1 (static) and 3.2 (dynamic).   Syllabus: 3.10
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mlcomp.checks import (
    check_choice,
    check_dtype,
    check_mask,
    check_matrix,
    check_positive,
    check_vector,
    check_whole,
    narrowed,
)
from mlcomp.context import isolated
from mlcomp.obs.fisher_removal import UPDATES, check_damping, removal_problem


@dataclass(frozen=True)
class MFACInverse:
    r"""$F^{-1}$ of a fixed set of gradients, in m·d numbers.

    Attributes:
        vectors: (m, d), $v_i$.
        denominators: (m,), $c_i$.
        damping: λ.
    """

    vectors: Float[Tensor, "samples d"]
    denominators: Float[Tensor, " samples"]
    damping: float

    @isolated
    def product(self, x: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        r"""Return $F^{-1}x$ in O(md)."""
        x = x.to(self.vectors.dtype)
        return x / self.damping - self.vectors.T @ (self.vectors @ x / self.denominators)

    @isolated
    def diagonal(self) -> Float[Tensor, " d"]:
        r"""Return $[F^{-1}]_{ii}$ of each weight in O(md)."""
        return 1 / self.damping - (self.vectors.square() / self.denominators[:, None]).sum(0)

    @isolated
    def block(self, indices: Int[Tensor, " q"]) -> Float[Tensor, "q q"]:
        r"""Return $[F^{-1}]_{QQ}$ for some weights in O(mq²)."""
        v = self.vectors[:, indices]
        eye = torch.eye(len(indices), dtype=v.dtype, device=v.device)
        return eye / self.damping - v.T @ (v / self.denominators[:, None])


@isolated
def mfac_inverse(
    gradients: Float[Tensor, "samples d"], *, damping: float, dtype: torch.dtype = torch.float64
) -> MFACInverse:
    r"""Unroll the recursion of :func:`fisher_inverse` into its vectors: $F^{-1}$ without a d × d matrix.

    Args:
        gradients: (m, d), a row per sample; not modified.
        damping: λ > 0, absolute.
        dtype: float64, or float32 for half the memory: errors of about 1e-7·(mean squared norm of a gradient)/λ.
    Raises:
        ValueError: malformed gradients, damping ≤ 0 or lost to rounding beside them.
        TypeError: another dtype.
    Guarantee: product and diagonal equal those of the dense inverse up to rounding.
    Cost: 2·m²·d FLOPs once, m·d numbers; each product 4·m·d FLOPs.
    """
    check_matrix("gradients", gradients)
    check_positive("damping", damping)
    check_dtype("dtype", dtype, (torch.float32, torch.float64))
    check_damping(gradients.detach().double()[None], damping)
    g = gradients.detach().to(dtype)
    samples = len(g)
    vectors, denominators = torch.empty_like(g), g.new_empty(samples)
    for i, row in enumerate(g):
        before = vectors[:i]
        v = row / damping - before.T @ (before @ row / denominators[:i])
        vectors[i], denominators[i] = v, samples + row @ v
    return MFACInverse(vectors, denominators, damping)


@isolated
def mfac(
    weights: Float[Tensor, " d"],
    gradients: Float[Tensor, "samples d"],
    *,
    sparsity: float,
    damping: float,
    update: str = "sum",
    prunable: Bool[Tensor, " d"] | None = None,
) -> Float[Tensor, " d"]:
    r"""Prune as :func:`woodfisher` does with one block, without a d × d matrix.

    Args:
        weights, gradients, sparsity, damping, update, prunable: as there.
    Raises:
        ValueError: as there.
    Guarantee: equals :func:`woodfisher` with ``block_size=None`` up to rounding.
    Cost: 2·m²·d FLOPs; "joint" adds one m × m system, see :func:`joint_step`.
    """
    check_choice("update", update, UPDATES)
    problem = removal_problem(weights, gradients, prunable, sparsity)
    w = problem.weights
    inverse = mfac_inverse(problem.gradients, damping=damping)
    diagonal = inverse.diagonal()
    removed = problem.least(w.square() / diagonal / 2)
    step = torch.zeros_like(w)
    if update == "sum":
        step = -inverse.product(w * removed / diagonal)
    elif update == "joint":
        step = joint_step(w, problem.gradients, removed, damping=damping)
    return narrowed((w + step).masked_fill(removed, 0), weights.dtype)


@isolated
def joint_step(
    weights: Float[Tensor, " d"],
    gradients: Float[Tensor, "samples d"],
    removed: Bool[Tensor, " d"],
    *,
    damping: float,
) -> Float[Tensor, " d"]:
    r"""Return the step that removes Q at the least $\tfrac12\delta^\top F\delta$, from one m × m system.

    With $\delta_Q = -w_Q$ fixed, the rest solves a ridge regression,
    $\min \tfrac1m\lVert G_R\delta_R - G_Qw_Q\rVert^2 + \lambda\lVert\delta_R\rVert^2$, so
    $\delta_R = G_R^\top(m\lambda I + G_RG_R^\top)^{-1}G_Qw_Q$.

    Args:
        weights: (d,), gradients: (m, d); not modified.
        removed: True where a weight goes.
        damping: λ > 0, absolute.
    Raises:
        ValueError: malformed arguments, damping lost to rounding.
    Guarantee: equals $-[F^{-1}]_{:,Q}([F^{-1}]_{QQ})^{-1}w_Q$ up to rounding.
    Cost: m²·d + m³ FLOPs, for any number of removals.
    """
    problem = removal_problem(weights, gradients, None, 0.0)
    check_mask("removed", removed, weights)
    check_positive("damping", damping)
    g = gradients.detach().double()
    check_damping(g[None], damping)
    rest, lost = g.masked_fill(removed, 0), (g * removed) @ problem.weights
    moved = rest.T @ torch.cholesky_solve(lost[:, None], _factor(rest @ rest.T, damping))[:, 0]
    return torch.where(removed, -problem.weights, moved)


class DynamicMFAC:
    r"""$F^{-1}$ of the last m gradients of a training run, kept in float64 on the CPU.

    $F^{-1}x = \tfrac1\lambda(x - G^\top(m\lambda I + GG^\top)^{-1}Gx)$: an m × m system, of which a new gradient
    changes one row.

    Args:
        size: d.
        window: m, gradients that are kept; a new one takes the place of the oldest.
        damping: λ > 0, absolute.
    Raises:
        ValueError: size or window < 1, damping ≤ 0.
    Guarantee: equal to :func:`mfac_inverse` of the gradients in the window, up to rounding; before it is full, m is
        the number that came so far. (With zeros in the free places and the full m, λ would count for too much.)
    Cost: 2·m·d FLOPs a gradient, m³/3 for the first product after it, 4·m·d a product.
    Deviations: the paper unrolls the recursion into scalars, an LU factorization without pivoting; a Cholesky
        factorization of the same m × m matrix is safe and exists on every device.
    """

    @isolated
    def __init__(self, size: int, window: int, *, damping: float) -> None:
        check_whole("size", size, 1)
        check_whole("window", window, 1)
        check_positive("damping", damping)
        self.damping, self.count = damping, 0
        self._gradients = torch.zeros(window, size, dtype=torch.float64, device="cpu")
        self._gram = torch.zeros(window, window, dtype=torch.float64, device="cpu")
        self._cholesky: Tensor | None = None

    @isolated
    def add(self, gradient: Float[Tensor, " d"]) -> None:
        """Take in one gradient (d,), and forget the oldest if the window is full.

        Raises:
            ValueError: malformed gradient, or so large that the damping is lost to rounding beside it.
        """
        check_vector("gradient", gradient)
        window, size = self._gradients.shape
        if len(gradient) != size:
            raise ValueError(f"gradient must have {size} entries, got {len(gradient)}")
        new = gradient.detach().to(self._gradients)
        check_damping(new[None, None] / window**0.5, self.damping)
        place = self.count % window
        self._gradients[place] = new
        self._gram[place] = self._gram[:, place] = self._gradients @ new
        self.count += 1
        self._cholesky = None

    @isolated
    def product(self, x: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        r"""Return $F^{-1}x$, float64; $x/\lambda$ before the first gradient."""
        check_vector("x", x)
        if len(x) != self._gradients.shape[1]:
            raise ValueError(f"x must have {self._gradients.shape[1]} entries, got {len(x)}")
        filled = min(self.count, len(self._gram))
        if not filled:
            return x.detach().double() / self.damping
        g, x = self._gradients[:filled], x.detach().to(self._gradients)
        if self._cholesky is None:
            self._cholesky = _factor(self._gram[:filled, :filled], self.damping)
        solved = torch.cholesky_solve((g @ x)[:, None], self._cholesky)[:, 0]
        return (x - g.T @ solved) / self.damping


def _factor(gram: Tensor, damping: float) -> Tensor:
    """Return the Cholesky factor of $m\\lambda I + GG^\\top$."""
    m = len(gram)
    return torch.linalg.cholesky(gram + m * damping * torch.eye(m, dtype=gram.dtype, device=gram.device))
