r"""Both directions of the Kullback–Leibler divergence: a Gaussian fitted to a mixture, with every local minimum.

Notation: $p(x) = \sum_k w_k N(x; m_k, s_k^2)$ the mixture ("teacher"), $q = N(\mu, \sigma^2)$ the Gaussian
("student"), z a standard normal number; θ = (μ, log σ).
Forward: $\mathrm{KL}(p \Vert q) = E_p \log p - E_p \log q$, whose only minimum has the mean and variance of p.
Reverse: $\mathrm{KL}(q \Vert p) = -\log\sigma - \tfrac12 \log 2\pi e - E_z \log p(\mu + \sigma z)$, which may have
several: with $s = (\log p)'$ its gradient is $(-E\,s,\ -1 - E\,\sigma z s)$.
Source: Gu, Dong, Wei, Huang 2024, arXiv:2306.08543, section 2.1 and figure 2 (the toy).   Syllabus: 5.05
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from mlcomp.checks import check_choice, check_floating, check_values
from mlcomp.context import isolated

DIRECTIONS = ("forward", "reverse")
WIDEST = 30  # of the smallest standard deviation: how far a mixture may reach, so that the quadrature resolves it
REACH = 10.0  # standard deviations of q that are integrated over; beyond them lie 1e-23
COARSE = 401  # nodes of the search
# log p has singularities at π s²/(reach of the mixture) beside the real axis, and the trapezoidal rule with step h is
# off by exp(−2π · distance / h): with 25 nodes for each squared reach in units of s that is 1e-11.
FINE = 25

Mixture = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class GaussianFit:
    """A local minimum.

    Attributes:
        mean, std: of the Gaussian.
        divergence: KL there [nats].
        hessian: second derivatives by (mean, log std); positive definite.
    """

    mean: float
    std: float
    divergence: float
    hessian: Float64[Tensor, "2 2"]


@isolated
def gaussian_divergence(
    mean: Float[Tensor, "*points"],
    std: Float[Tensor, "*points"],
    weights: Float[Tensor, " k"],
    means: Float[Tensor, " k"],
    stds: Float[Tensor, " k"],
    *,
    direction: str,
) -> Float64[Tensor, "*points"]:
    """Return the KL divergence [nats] between a mixture and Gaussians, by quadrature in float64, without gradient.

    Args:
        mean, std: of the Gaussians, of one shape; std positive.
        weights, means, stds: of the mixture's components; weights positive with sum 1, stds positive.
        direction: "forward", KL(mixture ‖ Gaussian), or "reverse", KL(Gaussian ‖ mixture).
    Raises:
        ValueError: other shapes or values, another direction, a mixture that reaches farther than 30 of its smallest
            standard deviation.
    Guarantee: for Gaussians no wider than the mixture exact to 1e-9.
    """
    p, shift, scale, fine = _mixture(weights, means, stds)
    check_choice("direction", direction, DIRECTIONS)
    for name, x in (("mean", mean), ("std", std)):
        check_values(name, x)
    if mean.shape != std.shape:
        raise ValueError(f"mean and std must have one shape, got {tuple(mean.shape)} and {tuple(std.shape)}")
    if bool((std <= 0).any()):
        raise ValueError(f"std must be positive, got {float(std.min()):g}")
    mu, log_std = (mean.detach().double() - shift) / scale, std.detach().double().log() - math.log(scale)
    if direction == "forward":
        return _forward(mu, log_std, p, fine)
    flat = torch.stack((mu.flatten(), log_std.flatten()), 1)
    parts = [_reverse(some, p, fine)[0] for some in flat.split(32)]
    return torch.cat([flat.new_empty(0), *parts]).view(mean.shape)


@isolated
def fit_gaussian(
    weights: Float[Tensor, " k"], means: Float[Tensor, " k"], stds: Float[Tensor, " k"], *, direction: str
) -> tuple[GaussianFit, ...]:
    """Return the local minima of the KL divergence between a mixture and a Gaussian, the lowest first.

    Args:
        weights, means, stds, direction: as in :func:`gaussian_divergence`.
    Returns:
        "forward": the mixture's own mean and standard deviation, the one minimum there is. "reverse": every minimum
        that a damped Newton's method reaches from a grid of means across the mixture times standard deviations from
        half the smallest component's to twice the mixture's.
    Raises:
        ValueError: as :func:`gaussian_divergence`.
    Guarantee: at each the gradient is below 1e-9 in units of the mixture's standard deviation, and both eigenvalues
        of the Hessian are positive. That none is missing is no theorem, but what a search on a fine grid confirms.
    Cost: reverse about a second for a few components.
    """
    p, shift, scale, fine = _mixture(weights, means, stds)
    check_choice("direction", direction, DIRECTIONS)
    if direction == "forward":
        found = torch.zeros(1, 2, dtype=torch.float64)  # the mixture has mean 0 and standard deviation 1 here
        value, hessian = _forward(found[:, 0], found[:, 1], p, fine), torch.diag(found.new_tensor((1.0, 2.0)))[None]
    else:
        found = _distinct(_descend(_starts(p), p, COARSE))
        found = _distinct(_descend(found, p, fine))
        value, gradient, hessian = _reverse(found, p, fine)
        good = (gradient.abs().amax(1) < 1e-9) & (torch.linalg.eigvalsh(hessian)[:, 0] > 0)
        kept = [i for i in range(len(found)) if bool(good[i])]
        order = sorted(kept, key=lambda i: (round(float(value[i]), 9), float(found[i, 0])))  # of equal ones the left
        found, value, hessian = found[order], value[order], hessian[order]
    units = hessian.new_tensor((1 / scale, 1.0))
    return tuple(
        GaussianFit(shift + scale * float(mu), scale * math.exp(log_std), float(v), h * units * units[:, None])
        for (mu, log_std), v, h in zip(found.tolist(), value, hessian, strict=True)
    )


def _mixture(weights: Tensor, means: Tensor, stds: Tensor) -> tuple[Mixture, float, float, int]:
    """Return the mixture with mean 0 and standard deviation 1, what these were, and how many nodes it needs."""
    parts = {"weights": weights, "means": means, "stds": stds}
    for name, x in parts.items():
        check_floating(name, x)
        if x.ndim != 1 or not x.numel() or x.shape != weights.shape:
            raise ValueError(f"{name} must be (components,), one for each weight, got {tuple(x.shape)}")
        check_values(name, x)
    w, m, s = (x.detach().double() for x in parts.values())
    if bool((w <= 0).any()) or abs(float(w.sum()) - 1) > 1e-6:
        raise ValueError(f"weights must be positive with sum 1, got {w.tolist()}")
    w = w / w.sum()
    if bool((s <= 0).any()):
        raise ValueError(f"stds must be positive, got {s.tolist()}")
    reach = float((m + s).max() - (m - s).min()) / float(s.min())
    if not reach <= WIDEST:
        raise ValueError(f"the mixture must reach no farther than {WIDEST} of its smallest std, got {reach:.3g}")
    shift = float(w @ m)
    scale = math.sqrt(float(w @ (s.square() + (m - shift).square())))
    return (w, (m - shift) / scale, s / scale), shift, scale, COARSE + math.ceil(FINE * reach**2)


def _log_density(x: Tensor, p: Mixture) -> tuple[Tensor, Tensor, Tensor]:
    """Return log p and its first and second derivative."""
    w, m, s = p
    d = (m - x[..., None]) / s.square()
    each = w.log() - s.log() - 0.5 * math.log(2 * math.pi) - 0.5 * (d * s).square()
    log_p = each.logsumexp(-1)
    share = (each - log_p[..., None]).exp()
    score = (share * d).sum(-1)
    return log_p, score, (share * (d.square() - 1 / s.square())).sum(-1) - score.square()


def _normal_nodes(count: int) -> tuple[Tensor, Tensor]:
    """Return nodes and weights of the trapezoidal rule under a standard normal: for smooth integrands exponential."""
    z = torch.linspace(-REACH, REACH, count, dtype=torch.float64)
    weight = (-0.5 * z.square()).exp()
    return z, weight / weight.sum()


def _reverse(theta: Tensor, p: Mixture, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return KL(q ‖ p), its gradient and its Hessian by (mean, log std), for each row of ``theta``."""
    z, weight = _normal_nodes(count)
    away = theta[:, 1:].exp() * z  # x − μ
    log_p, score, slope = _log_density(theta[:, :1] + away, p)
    value = -theta[:, 1] - 0.5 * math.log(2 * math.pi * math.e) - log_p @ weight
    gradient = torch.stack((-score @ weight, -1 - (away * score) @ weight), 1)
    mixed = -(away * slope) @ weight
    both = -(away * score + away.square() * slope) @ weight
    return value, gradient, torch.stack((-slope @ weight, mixed, mixed, both), 1).view(-1, 2, 2)


def _forward(mean: Tensor, log_std: Tensor, p: Mixture, count: int) -> Tensor:
    """Return KL(p ‖ q), for p with mean 0 and standard deviation 1."""
    w, m, s = p
    z, weight = _normal_nodes(count)
    log_p = _log_density(m[:, None] + s[:, None] * z, p)[0] @ weight
    cross = log_std + 0.5 * math.log(2 * math.pi) + 0.5 * (1 + mean.square()) * (-2 * log_std).exp()
    return w @ log_p + cross


def _starts(p: Mixture) -> Tensor:
    _, m, s = p
    means = torch.cat((m, torch.linspace(float(m.min()), float(m.max()), 7, dtype=m.dtype)))
    stds = torch.logspace(math.log10(0.5 * float(s.min())), math.log10(2.0), 5, dtype=m.dtype)
    return torch.cartesian_prod(means, stds.log())


def _descend(theta: Tensor, p: Mixture, count: int) -> Tensor:
    """Let each row go downhill: Newton's steps with positive curvatures, halved until they lower the divergence."""
    value, gradient, hessian = _reverse(theta, p, count)
    for _ in range(100):
        if float(gradient.abs().max()) < 1e-10:
            break
        curvature, axes = torch.linalg.eigh(hessian)
        along = (axes.mT @ gradient[..., None])[..., 0]
        step = -(axes @ (along / curvature.abs().clamp(min=1e-3))[..., None])[..., 0]
        step = step / step.norm(dim=1, keepdim=True).div(0.5).clamp(min=1.0)
        for _ in range(20):
            worse = _reverse(theta + step, p, count)[0] > value + 1e-13  # beyond rounding
            if not bool(worse.any()):
                break
            step = step.where(~worse[:, None], step / 2)
        theta = theta + step
        value, gradient, hessian = _reverse(theta, p, count)
    return theta


def _distinct(theta: Tensor) -> Tensor:
    """Return rows that differ by more than rounding and what the coarse quadrature leaves."""
    kept: list[Tensor] = []
    for row in theta:
        if all(float((row - other).abs().max()) > 1e-5 for other in kept):
            kept.append(row)
    return torch.stack(kept)
