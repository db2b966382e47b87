r"""Vector quantization with a k-means codebook.

Notation: points $x_i \in \mathbb R^d$, codebook $c_1, \dots, c_K$, assignment
$a_i = \arg\min_k \lVert x_i - c_k \rVert^2 = \arg\min_k \tfrac12 \lVert c_k \rVert^2 - x_i \cdot c_k$.
Source: Lloyd 1982; seeding: Arthur and Vassilvitskii 2007 (k-means++).   Syllabus: 1.07
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from mlcomp.checks import check_like, check_matrix, check_size, check_whole
from mlcomp.context import isolated

# Scores held at a time. On a CPU they should stay in its cache (measured: 3 times faster), a GPU wants much at once.
CHUNK = {"cpu": 2**18, "gpu": 2**24}


@dataclass(frozen=True)
class KMeans:
    """A codebook (K, d), the index of each point in it (N,), and the mean squared error of a coordinate.

    The indices belong to this codebook: every point has its nearest entry.
    """

    codebook: Float[Tensor, "entries dim"]
    index: Int32[Tensor, " points"]
    distortion: float

    @isolated
    def decode(self) -> Float[Tensor, "points dim"]:
        """Return the entry of each point."""
        return self.codebook[self.index.long()]


@isolated
def kmeans(
    points: Float[Tensor, "points dim"],
    entries: int,
    *,
    generator: torch.Generator | None = None,
    start: Float[Tensor, "entries dim"] | None = None,
    max_steps: int = 100,
    tolerance: float = 1e-6,
) -> KMeans:
    """Fit a codebook by Lloyd's iterations from a k-means++ seeding, or from given centres.

    Args:
        points: (N, d), finite, computed in float32 (float64 stays); not modified.
        entries: K, from 1 to N.
        generator: of the random seeding, on the device of ``points``; needed unless ``start`` is given.
        start: (K, d) centres to begin with, instead of a seeding; not modified.
        max_steps: iterations at the most.
        tolerance: stop when the distortion falls by less than this share.
    Raises:
        ValueError: malformed points or start, entries outside 1 … N, not exactly one of generator and start.
    Guarantee: the distortion never rises from one iteration to the next. An entry that loses all its points moves to
        the point with the largest error; with at most K distinct points the distortion is 0.
    Cost: 2·N·K·d FLOPs an iteration; the seeding reads the points K times. 300 000 points, K = 256, d = 8: about a
        second to seed and a tenth of a second an iteration on one core (benchmarks/kmeans.py).
    """
    _check(points, entries)
    check_whole("max_steps", max_steps, 0)
    if (generator is None) == (start is None):
        raise ValueError(f"give exactly one of generator and start, got {generator=} and {start=}")
    x = points.detach() if points.dtype == torch.float64 else points.detach().float()
    if start is None:
        assert generator is not None  # one of the two is given
        codebook = _seed(x, entries, generator)
    else:
        check_like("start", start, (entries, x.shape[1]), "entries and points")
        check_size("start", start)
        codebook = start.detach().to(x)
    index, error = _assign(x, codebook)
    for _ in range(max_steps):
        before = float(error.sum())
        codebook = _centres(x, index, error, codebook)
        index, error = _assign(x, codebook)
        if float(error.sum()) >= (1 - tolerance) * before:
            break
    return KMeans(codebook, index, float(error.mean()) / x.shape[1])


@isolated
def kmeans_assign(
    points: Float[Tensor, "points dim"], codebook: Float[Tensor, "entries dim"]
) -> Int32[Tensor, " points"]:
    """Return the index of each point's nearest codebook entry, the lowest where several are equally near.

    Args:
        points: (N, d), any float dtype; codebook: (K, d). Computed in float32, in float64 if either is. Not modified.
    Raises:
        ValueError: malformed points or codebook, NaN or inf.
    """
    _check(points, 1)
    check_matrix("codebook", codebook)
    check_like("codebook", codebook, (len(codebook), points.shape[1]), "the points' dimension")
    dtype = torch.float64 if torch.float64 in (points.dtype, codebook.dtype) else torch.float32
    return _nearest(points, codebook.to(dtype))


def _check(points: Tensor, entries: int) -> None:
    check_matrix("points", points)
    check_whole("entries", entries, 1, len(points))


def _nearest(points: Tensor, codebook: Tensor) -> Tensor:
    half = codebook.square().sum(1) / 2
    chunk = CHUNK["cpu" if points.device.type == "cpu" else "gpu"]
    parts = points.to(codebook).split(max(1, chunk // len(codebook)))
    return torch.cat([torch.addmm(half, part, codebook.T, alpha=-1).argmin(1).to(torch.int32) for part in parts])


def _assign(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    index = _nearest(x, codebook)
    return index, (x - codebook[index.long()]).square().sum(1)


def _centres(x: Tensor, index: Tensor, error: Tensor, codebook: Tensor) -> Tensor:
    at = index.long()
    count = torch.bincount(at, minlength=len(codebook)).to(x)
    total = torch.zeros_like(codebook).index_add_(0, at, x)
    centre = torch.where(count[:, None] > 0, total / count.clamp(min=1)[:, None], codebook)
    empty = (count == 0).nonzero()[:, 0]
    return centre.index_copy_(0, empty, x[error.topk(len(empty)).indices])


def _seed(x: Tensor, entries: int, generator: torch.Generator) -> Tensor:
    """Draw each seed with a probability proportional to its squared distance to the seeds before it."""
    first = torch.randint(len(x), (1,), generator=generator, device=x.device)
    codebook = x[first]
    distance = (x - codebook).square().sum(1)
    for _ in range(entries - 1):
        # By the inverse of the distribution function, since torch.multinomial takes at most 2²⁴ points.
        total = distance.double().cumsum(0)
        draw = torch.rand(1, generator=generator, device=x.device, dtype=torch.float64) * total[-1]
        new = x[torch.searchsorted(total, draw, right=True).clamp(max=len(x) - 1)]
        codebook = torch.cat([codebook, new])
        distance = torch.minimum(distance, (x - new).square().sum(1))
    return codebook
