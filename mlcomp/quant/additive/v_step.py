r"""The V step of PV-tuning: new codes for the few groups where a gradient step promises most.

Notation: φ the loss, y the decoded weights, $y_j$ a group, $g_j$ its gradient, $A_j$ the curvature that a group is
given (the unit matrix in the paper); $S$ the τ groups with the largest $g_j^\top A_j^{-1} g_j$; $L$ the curvature of
φ along $A^{-1} g_S$, in units of A; the new codes are those nearest, in the metric of $A_j$, to
$y_j - \tfrac1L A_j^{-1} g_j$.
Source: Malinovskii et al. 2024, arXiv:2405.14852, Algorithm 2, lines 4–7.   Syllabus: 1.15
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mlcomp.formats.additive_codebook import AdditiveCodes
from mlcomp.layerwise.inputs import collect_hessians
from mlcomp.quant.additive.additive_student import AdditiveStudent, AdditiveWeight
from mlcomp.quant.additive.aqlm_codebooks import decode_sum

METRICS = ("inputs", "identity")
REACHES = (1.0, 2.0, 4.0)  # in units of 1/L
TRIES = 5  # subspaces of a V step, each a quarter of the one before


def nearest_codes(
    target: Float[Tensor, "points dim"],
    start: AdditiveCodes,
    *,
    metric: Float[Tensor, "#points dim dim"] | None = None,
    beam: int = 4,
) -> UInt8[Tensor, "points books"]:
    """Return for each point the codes whose sum, times the point's scale, is nearest to it.

    Args:
        target: (points, dim).
        start: (points, 1, books) codes to begin from, codebooks, and a scale for each point.
        metric: (points or 1, dim, dim) of each point's distance; None: Euclidean.
        beam: sums kept from codebook to codebook, in two sweeps over them.
    Guarantee: with one codebook the codes are the best; no point ends farther away than it began. A point whose scale
        is zero keeps its codes.
    """
    books = start.codebooks.to(target)
    count, entries, dim = books.shape
    if metric is None:
        metric = torch.eye(dim, dtype=target.dtype, device=target.device)[None]
    kept = start.codes  # (points, kept, books)
    zero = start.scale == 0
    scaled = target / torch.where(zero, 1, start.scale)[:, None]
    point = torch.arange(len(target), device=target.device)[:, None]
    for step in range(2 * count if count > 1 else 1):
        c = step % count
        if c == 0:
            kept = kept[:, :1]  # the best; a sweep from several would reach the same sums twice
        others = sum(books[o][kept[:, :, o].long()] for o in range(count) if o != c)
        rest = scaled[:, None] - others
        far = torch.einsum("pkd,pde,pke->pk", rest, metric.expand(len(target), dim, dim), rest)
        cross = (rest @ metric) @ books[c].T
        square = torch.einsum("ed,pdf,ef->pe", books[c], metric, books[c])
        score = far[:, :, None] - 2 * cross + square[:, None]
        index = score.flatten(1).topk(min(beam, score[0].numel()), dim=1, largest=False).indices
        kept = kept[point, index // entries].clone()
        kept[:, :, c] = (index % entries).to(torch.uint8)
    return torch.where(zero[:, None], start.codes[:, 0], kept[:, 0])


@dataclass(frozen=True)
class Curvature:
    """The curvature that a layer's groups are given, up to a factor: (groups, dim, dim), and its inverse."""

    blocks: Tensor
    inverse: Tensor
    informed: bool

    def solve(self, gradient: Tensor) -> Tensor:
        """Return the gradient (out, groups, dim) times the inverse."""
        return torch.einsum("ngd,gde->nge", gradient, self.inverse)


def curvatures(student: AdditiveStudent, metric: str) -> list[Curvature]:
    """Return the unit matrix for each group, or the block of the layer's $2XX^\\top$, damped by 1 %."""
    found = []
    data = [student.inputs[i : i + student.batch_size] for i in range(0, len(student.inputs), student.batch_size)]
    hessians = collect_hessians(student.block, data, student.names) if metric == "inputs" else {}
    for name, weight in zip(student.names, student.weights.values(), strict=True):
        groups, dim = weight.codes.shape[1], weight.codebooks.shape[2]
        unit = torch.eye(dim, device=weight.scale.device).expand(groups, dim, dim)
        blocks = unit
        if metric == "inputs":
            h = hessians[name] if hessians[name].ndim == 2 else hessians[name].mean(0)  # of a grouped convolution
            h = h / h.diagonal().mean()
            blocks = h.reshape(groups, dim, groups, dim).diagonal(dim1=0, dim2=2).permute(2, 0, 1) + 0.01 * unit
        found.append(Curvature(blocks, torch.linalg.inv(blocks), metric == "inputs"))
    return found


@torch.no_grad()
def v_step(
    student: AdditiveStudent,
    metrics: list[Curvature],
    batch: Tensor,
    share: float,
    beam: int,
    *,
    reaches: tuple[float, ...] = REACHES,
    tries: int = TRIES,
) -> float:
    """Change codes where the loss of the samples ``batch`` falls, in place; return the share to try next."""
    y = [_groups(matrix, weight) for matrix, weight in zip(student.decoded(), student.weights.values(), strict=True)]
    gradients = _gradients(student, y, batch)
    moves = [metric.solve(g) for metric, g in zip(metrics, gradients, strict=True)]
    gains = [(g * m).sum(2) for g, m in zip(gradients, moves, strict=True)]
    everything = torch.cat([gain.flatten() for gain in gains])
    before = student.mean_loss(batch)
    weights = list(student.weights.values())
    old = [weight.codes.clone() for weight in weights]
    first = share
    for _ in range(tries):
        count = max(1, round(share * len(everything)))
        threshold = everything.topk(count).values[-1]
        if threshold <= 0:
            break  # a stationary point, or fewer groups matter than asked for
        chosen = [gain >= threshold for gain in gains]
        inside = [move * mask[:, :, None] for move, mask in zip(moves, chosen, strict=True)]
        step = _step_size(student, batch, y, gradients, inside, chosen)
        best, found = before, old
        candidates = [_moved(weights, metrics, y, inside, chosen, reach * step, beam) for reach in reaches]
        if metrics[0].informed:
            candidates += [
                _promising(weights, metrics, y, gradients, moves, reach * step, count, beam) for reach in reaches
            ]
        for codes in candidates:
            _set_codes(weights, codes)
            loss = student.mean_loss(batch)
            if loss < best:
                best, found = loss, codes
        _set_codes(weights, found)
        if found is not old:
            changed = sum(int((a != b).any(2).sum()) for a, b in zip(old, found, strict=True))
            return min(1.0, 2 * share) if 2 * changed > count else share / 2
        share = share / 4
    return first


def _set_codes(weights: list[AdditiveWeight], codes: list[Tensor]) -> None:
    for weight, new in zip(weights, codes, strict=True):
        weight.codes.copy_(new)


def _groups(matrix: Tensor, weight: AdditiveWeight) -> Tensor:
    """Return a matrix as (out, groups, dim)."""
    return matrix.reshape(*weight.codes.shape[:2], -1)


def _gradients(student: AdditiveStudent, y: list[Tensor], batch: Tensor) -> list[Tensor]:
    """Return the gradient with respect to the decoded weights, in groups."""
    found = student.gradients([v.flatten(1) for v in y], batch)
    return [g.reshape(v.shape) for g, v in zip(found, y, strict=True)]


def _step_size(
    student: AdditiveStudent,
    batch: Tensor,
    y: list[Tensor],
    gradients: list[Tensor],
    inside: list[Tensor],
    chosen: list[Tensor],
) -> float:
    """Return the minimum along the move within the chosen groups, but no step longer than the weights there."""
    size = sum((v * mask[:, :, None]).square().sum() for v, mask in zip(y, chosen, strict=True))
    square = sum(move.square().sum() for move in inside)
    longest = float(size / square) ** 0.5
    slope = float(sum((g * move).sum() for g, move in zip(gradients, inside, strict=True)))
    if longest == 0 or slope <= 0:
        return longest
    epsilon = 0.01 * longest
    there = _gradients(student, [v - epsilon * move for v, move in zip(y, inside, strict=True)], batch)
    fall = float(sum(((a - b) * move).sum() for a, b, move in zip(gradients, there, inside, strict=True)))
    return min(longest, epsilon * slope / fall) if fall > 0 else longest


def _moved(
    weights: list[AdditiveWeight],
    metrics: list[Curvature],
    y: list[Tensor],
    moves: list[Tensor],
    chosen: list[Tensor],
    step: float,
    beam: int,
) -> list[Tensor]:
    """Return codes in which the ``chosen`` groups are those nearest to y − step · move."""
    found = []
    for weight, metric, v, move, mask in zip(weights, metrics, y, moves, chosen, strict=True):
        codes = weight.codes.clone()
        row, group = mask.nonzero(as_tuple=True)
        if len(row):
            pieces = AdditiveCodes(codes[row, group][:, None], weight.codebooks.detach(), weight.scale.detach()[row])
            target = (v - step * move)[row, group]
            codes[row, group] = nearest_codes(target, pieces, metric=metric.blocks[group], beam=beam)
        found.append(codes)
    return found


def _promising(
    weights: list[AdditiveWeight],
    metrics: list[Curvature],
    y: list[Tensor],
    gradients: list[Tensor],
    moves: list[Tensor],
    step: float,
    count: int,
    beam: int,
) -> list[Tensor]:
    """Return codes in which those ``count`` groups moved whose quadratic model, rounding included, falls most."""
    everywhere = [torch.ones_like(v[:, :, 0], dtype=torch.bool) for v in y]
    codes = _moved(weights, metrics, y, moves, everywhere, step, beam)
    changes = []
    for weight, metric, v, g, new in zip(weights, metrics, y, gradients, codes, strict=True):
        moved = decode_sum(new, weight.codebooks.detach()) * weight.scale.detach()[:, None]
        delta = _groups(moved, weight) - v
        curved = torch.einsum("ngd,gde,nge->ng", delta, metric.blocks, delta)
        changes.append((g * delta).sum(2) + curved / (2 * step))
    threshold = min(0.0, float(torch.cat([c.flatten() for c in changes]).topk(count, largest=False).values[-1]))
    return [
        torch.where(((c <= threshold) & (c < 0))[:, :, None], new, weight.codes)
        for c, new, weight in zip(changes, codes, weights, strict=True)
    ]
