r"""Hard concrete gates: random numbers in [0, 1], often exactly 0 or 1, whose distribution can be learned.

Notation: u uniform in (0, 1), τ temperature, log α what is learned of a gate;
$s = \sigma((\ln u - \ln(1-u) + \log\alpha)/\tau)$ is stretched to $\bar s = s\,(r - l) + l$ with l = −0.1, r = 1.1,
and clipped: $z = \min(1, \max(0, \bar s))$. For 0 ≤ v < 1,
$P(z > v) = \sigma(\log\alpha - \tau\,\mathrm{logit}((v - l)/(r - l)))$; at v = 0 this is
$\sigma(\log\alpha + \tau\ln 11)$, the share of gates that are open.
Source: Louizos, Welling, Kingma 2018, arXiv:1712.01312, eqs. (10) to (12); Xia, Zhong, Chen 2022, arXiv:2204.00408,
section 3 (masks; the deterministic ones are of the authors' code).   Syllabus: 4.11
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import check_interval, check_positive, check_values
from mlcomp.context import isolated

TEMPERATURE = 2 / 3
LOW, HIGH = -0.1, 1.1
# u keeps this distance from 0 and 1, where its logit is infinite.
MARGIN = 1e-6
# Of deterministic gates: how much less steep than s at u = 1/2, as in the authors' code.
FLATTER = 0.8


@isolated
def hard_concrete(
    log_alpha: Float[Tensor, "*gates"],
    *,
    generator: torch.Generator | None = None,
    temperature: float = TEMPERATURE,
) -> Float[Tensor, "*gates"]:
    """Draw a gate for each log α; differentiable in it, with the noise held fixed (reparametrization).

    Args:
        log_alpha: any shape, any float dtype.
        generator: on the CPU; None: the global one, as dropout draws.
        temperature: τ > 0.
    Raises:
        ValueError: NaN or inf, τ not positive.
    Guarantee: in [0, 1]; the gradient is 0 where a gate is exactly 0 or 1.
    """
    _check(log_alpha, temperature)
    wide = torch.promote_types(log_alpha.dtype, torch.float32)
    uniform = torch.rand(log_alpha.shape, dtype=wide, device="cpu", generator=generator)
    return gate_of(log_alpha.to(wide), uniform.to(log_alpha.device), temperature).to(log_alpha.dtype)


def gate_of(log_alpha: Tensor, uniform: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Return z for the given u; both are broadcast."""
    noise = torch.logit(uniform, eps=MARGIN)
    return (((noise + log_alpha) / temperature).sigmoid() * (HIGH - LOW) + LOW).clamp(0, 1)


@isolated
def probability_above(
    log_alpha: Float[Tensor, "*gates"], *, value: float = 0.0, temperature: float = TEMPERATURE
) -> Float[Tensor, "*gates"]:
    """Return P(z > value), differentiable in log α; at 0, as by default, the probability that a gate is open.

    Args:
        value: in [0, 1). Towards 1 it is the probability of exactly 1.
        log_alpha, temperature: as in :func:`hard_concrete`.
    Raises:
        ValueError: as :func:`hard_concrete`; another value.
    """
    _check(log_alpha, temperature)
    check_interval("value", value, "[0, 1)")
    wide = torch.promote_types(log_alpha.dtype, torch.float32)
    return _above(log_alpha.to(wide), value, temperature).to(log_alpha.dtype)


@isolated
def expected_gate(log_alpha: Float[Tensor, "*gates"], *, temperature: float = TEMPERATURE) -> Float[Tensor, "*gates"]:
    r"""Return the mean of z, $\int_0^1 P(z > v)\,dv$, differentiable in log α.

    There is no closed form; 48 points of Gauss and Legendre give 12 digits at the usual temperature (in float64).

    Args, Raises: as :func:`hard_concrete`.
    """
    _check(log_alpha, temperature)
    wide = torch.promote_types(log_alpha.dtype, torch.float32)
    points, weights = np.polynomial.legendre.leggauss(48)
    terms = zip(((points + 1) / 2).tolist(), (weights / 2).tolist(), strict=True)
    return sum((w * _above(log_alpha.to(wide), v, temperature) for v, w in terms), start=torch.zeros(())).to(
        log_alpha.dtype
    )


@isolated
def deterministic_gates(
    log_alpha: Float[Tensor, "*batch gates"], *, temperature: float = TEMPERATURE
) -> Float[Tensor, "*batch gates"]:
    r"""Return the gates to prune by, without chance: as many zeros as expected, the others near 1.

    The number of zeros in each row is the expected one, n − Σ P(z > 0), rounded half up; the smallest log α get them
    (ties: the first). The others are $\sigma(0.8\,\log\alpha/\tau)$, below 1: they scale what they gate, and have to
    be folded into its weights.

    Args:
        log_alpha: each row of the last dimension is a set of gates. A row of one gate is off where P(z > 0) ≤ 1/2.
        temperature: τ > 0.
    Returns:
        values, without gradient.
    Raises:
        ValueError: as :func:`hard_concrete`; no dimension.
    Guarantee: a kept gate is never below a removed one by log α.
    """
    _check(log_alpha, temperature)
    if log_alpha.ndim == 0:
        raise ValueError("log_alpha must be (…, gates), got a number without dimension")
    wide = log_alpha.detach().double()
    zeros = ((1 - _above(wide, 0.0, temperature)).sum(-1, keepdim=True) + 0.5).floor()
    rank = wide.argsort(dim=-1, stable=True).argsort(-1)
    kept = (FLATTER * wide / temperature).sigmoid()
    return kept.masked_fill(rank < zeros, 0).to(log_alpha.dtype)


def _above(log_alpha: Tensor, value: float, temperature: float) -> Tensor:
    share = (value - LOW) / (HIGH - LOW)
    return (log_alpha - temperature * math.log(share / (1 - share))).sigmoid()


def _check(log_alpha: Tensor, temperature: float) -> None:
    check_values("log_alpha", log_alpha)
    check_positive("temperature", temperature)
