r"""Where the weights of a tensor come from, as far as a scalar quantizer or a pruner can see: partial moments.

Notation: W a weight with density f or a tensor's entries; half moments $A_k(a) = \int_0^a t^k f(t)\,dt$ of a
symmetric density; κ kurtosis $E(W-EW)^4/(E(W-EW)^2)^2$ (3 for a Gaussian).
Source: Kuzmin et al. 2023, arXiv:2307.02973, section 3 (the densities, and the sample kurtosis).   Syllabus: 1.22
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import check_finite

_NODES, _WEIGHTS = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(16))


@dataclass(frozen=True)
class SymmetricDensity:
    """A symmetric density with unit variance; its largest useful value is ``bound`` (nothing measurable beyond)."""

    half: Callable[[Tensor], Tensor]  # (n,) float64 ≥ 0 → (3, n): A_0, A_1, A_2
    kurtosis: float
    bound: float
    energy: float = 1.0  # E W²

    def moments(self, x: Float[Tensor, " n"]) -> Float[Tensor, "3 n"]:
        r"""Return $\int_{-\infty}^{x} (1, t, t^2) f(t)\,dt$."""
        part = self.half(x.abs())
        whole = self.half(torch.tensor([self.bound], dtype=torch.float64))
        odd = torch.stack([x.sign(), torch.ones_like(x), x.sign()])  # t·f is odd: its integral is even in x
        return odd * part + whole * torch.tensor([[1.0], [-1.0], [1.0]], dtype=torch.float64)

    def smallest_energy(self, share: float) -> float:
        """Return E[W²; |W| ≤ t], where P(|W| ≤ t) = ``share``."""
        if share >= 1:
            return self.energy
        low, high = 0.0, self.bound
        for _ in range(100):  # bisection to the last bit
            middle = (low + high) / 2
            below = 2 * float(self.half(torch.tensor([middle], dtype=torch.float64))[0]) < share
            low, high = (middle, high) if below else (low, middle)
        return 2 * float(self.half(torch.tensor([low], dtype=torch.float64))[2])


@dataclass(frozen=True)
class Sample:
    """The entries of a tensor, sorted, with the running sums that make every question a look-up (float64)."""

    kurtosis: float
    bound: float
    energy: float
    _values: np.ndarray = field(repr=False)
    _sums: np.ndarray = field(repr=False)  # (2, n + 1): Σw and Σw² of the smallest entries, over n
    _small: np.ndarray = field(repr=False)  # (n + 1,): Σw² of the entries of least magnitude, over n

    def moments(self, x: Float[Tensor, " n"]) -> Float[Tensor, "3 n"]:
        """Return the means of (1, w, w²) over the entries w ≤ x, of all entries."""
        # Compared in the dtype of the entries: otherwise numpy would copy them all to float64.
        index = np.searchsorted(self._values, x.numpy().astype(self._values.dtype), side="right")
        return torch.from_numpy(np.stack([index / len(self._values), *self._sums[:, index]]))

    def smallest_energy(self, share: float) -> float:
        """Return the mean square that the ``share`` of entries of least magnitude hold (count rounded half up)."""
        return float(self._small[min(len(self._values), math.floor(share * len(self._values) + 0.5))])


def sample(tensor: Tensor) -> Sample:
    """Return the source that a tensor's own entries are.

    Args:
        tensor: any shape, any float dtype, not all entries equal; not modified.
    Raises:
        ValueError: NaN or inf, or a constant tensor, whose kurtosis has no meaning. TypeError: not floating point.
    Cost: two sorts; 28 bytes an entry.
    """
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        raise TypeError(f"tensor must be a floating-point torch.Tensor, got {getattr(tensor, 'dtype', type(tensor))}")
    check_finite("tensor", tensor)
    wide = torch.promote_types(tensor.dtype, torch.float32)
    values = np.sort(tensor.detach().cpu().to(wide).flatten().numpy())
    if len(values) == 0 or values[0] == values[-1]:
        raise ValueError(f"a sample needs at least two different values, got {len(values)} equal one(s)")
    double = values.astype(np.float64)
    sums = np.zeros((2, len(values) + 1))
    np.cumsum(double, out=sums[0, 1:])
    np.cumsum(double**2, out=sums[1, 1:])
    small = np.zeros(len(values) + 1)
    np.cumsum(np.sort(np.abs(values)).astype(np.float64) ** 2, out=small[1:])
    square = (double - double.mean()) ** 2  # its own square again: a fourth power takes numpy 20 times as long
    kurtosis = float((square**2).mean() / square.mean() ** 2)
    energy, bound = float((double**2).mean()), float(np.abs(double[[0, -1]]).max())
    return Sample(kurtosis, bound, energy, values, sums / len(values), small / len(values))


def gaussian() -> SymmetricDensity:
    """Return the standard normal density: half moments in closed form by the error function."""

    def half(a: Tensor) -> Tensor:
        zero, phi = (torch.exp(-(v**2) / 2) / math.sqrt(2 * math.pi) for v in (torch.zeros_like(a), a))
        mass = torch.erf(a / math.sqrt(2)) / 2
        return torch.stack([mass, zero - phi, mass - a * phi])

    return SymmetricDensity(half, 3.0, 12.0)  # beyond 12 lies 1e-30 of the variance


def laplace() -> SymmetricDensity:
    """Return the Laplace density of unit variance: half moments in closed form."""

    def half(a: Tensor) -> Tensor:
        r = math.sqrt(2)
        tail = torch.exp(-r * a)
        return torch.stack([1 - tail, (1 - tail * (1 + r * a)) / r, 1 - tail * (a**2 + r * a + 1)]) / 2

    return SymmetricDensity(half, 6.0, 50.0)  # beyond 50 lies 1e-27 of the variance


def student_t(kurtosis: float, *, limit: float = 1000.0) -> SymmetricDensity:
    r"""Return Student's t, cut off at ± ``limit`` times its scale, of the given kurtosis and unit variance.

    Cut off, because real tensors are finite, and without the cut no t with 4 or fewer degrees of freedom has a
    kurtosis. The degrees of freedom ν ≥ 2 that give κ are found by bisection; moments by 16-node Gauss–Legendre
    quadrature between geometric break points and the points asked for.

    Args:
        kurtosis: above 3, and below what ν = 2 gives at this limit (about 6390 at 1000).
        limit: in units of the scale of t; ≥ 10.
    Raises:
        ValueError: a kurtosis or limit that no such density has.
    """
    if not 10 <= limit < math.inf:
        raise ValueError(f"limit must be finite and ≥ 10 scales, got {limit!r}")
    low, high = math.log(2.0), math.log(1e6)
    largest, least = _kurtosis_of_t(2.0, limit), _kurtosis_of_t(1e6, limit)
    if not least <= kurtosis <= largest:
        raise ValueError(f"kurtosis must be from {least:.5f} to {largest:.1f} at {limit=}, got {kurtosis!r}")
    for _ in range(60):
        middle = (low + high) / 2
        heavy = _kurtosis_of_t(math.exp(middle), limit) > kurtosis
        low, high = (middle, high) if heavy else (low, middle)
    dof = math.exp(low)
    mass, energy = _t_moments(dof, torch.tensor([limit], dtype=torch.float64), (0, 2))[:, 0].tolist()
    scale = math.sqrt(energy / mass)

    def half(a: Tensor) -> Tensor:
        raw = _t_moments(dof, (a * scale).clamp(max=limit), (0, 1, 2))
        return raw / (2 * mass * scale ** torch.arange(3, dtype=torch.float64)[:, None])

    return SymmetricDensity(half, kurtosis, limit / scale)


def _kurtosis_of_t(dof: float, limit: float) -> float:
    mass, energy, fourth = _t_moments(dof, torch.tensor([limit], dtype=torch.float64), (0, 2, 4))[:, 0].tolist()
    return fourth * mass / energy**2


def _t_moments(dof: float, a: Tensor, powers: tuple[int, ...]) -> Tensor:
    r"""Return $\int_0^a t^k (1 + t^2/\nu)^{-(\nu+1)/2} dt$ for each k, (powers, len(a))."""
    grid = torch.cat([torch.zeros(1, dtype=torch.float64), 2.0 ** torch.arange(-4, 4, 0.25, dtype=torch.float64)])
    top = torch.maximum(a.max(), torch.ones((), dtype=torch.float64))
    far = 8.0 * 2 ** torch.arange(1, 64, dtype=torch.float64)
    points = torch.unique(torch.cat([grid, far[far < top], a]))
    width = points.diff()[:, None] / 2
    t = points[:-1, None] + width * (1 + _NODES)
    f = width * _WEIGHTS * torch.exp(-(dof + 1) / 2 * torch.log1p(t**2 / dof))
    sums = torch.stack([(t**k * f).sum(1).cumsum(0) for k in powers])
    sums = torch.cat([torch.zeros(len(powers), 1, dtype=torch.float64), sums], 1)
    return sums[:, torch.searchsorted(points, a)]
