r"""The V step of PV-tuning: new codes for the few groups where a gradient step promises most.

Notation: φ the loss, y the decoded weights, $y_j$ a group, $g_j$ its gradient, $A_j$ the curvature that a group is
given (the unit matrix in the paper); $S$ the τ groups with the largest $g_j^\top A_j^{-1} g_j$; $L$ the curvature of
φ along $A^{-1} g_S$, in units of A; the new codes are those nearest, in the metric of $A_j$, to
$y_j - \tfrac1L A_j^{-1} g_j$.
Source: Malinovskii et al. 2024, arXiv:2405.14852, Algorithm 2, lines 4–7.   Syllabus: 1.15
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.formats.additive_codebook import AdditiveCodes
from mlcomp.layerwise.inputs import collect_hessians
from mlcomp.quant.additive.additive_student import AdditiveStudent, AdditiveWeight
from mlcomp.quant.additive.aqlm_codebooks import decode_sum
from mlcomp.quant.additive.nearest_codes import nearest_codes
from mlcomp.train.loop import random_batches

METRICS = ("inputs", "identity")
REACHES = (1.0, 2.0, 4.0)  # in units of 1/L
TRIES = 5  # subspaces of a V step, each a quarter of the one before


@dataclass(frozen=True)
class Curvature:
    """The curvature that a layer's groups are given, up to a factor: (groups, dim, dim), and its inverse."""

    blocks: Float[Tensor, "groups dim dim"]
    inverse: Float[Tensor, "groups dim dim"]
    informed: bool

    def solve(self, gradient: Float[Tensor, "out groups dim"]) -> Float[Tensor, "out groups dim"]:
        """Return the gradient (out, groups, dim) times the inverse."""
        return torch.einsum("ngd,gde->nge", gradient, self.inverse)


def curvatures(student: AdditiveStudent, metric: str) -> list[Curvature]:
    r"""Return the unit matrix for each group, or the block of the layer's $2XX^\top$, damped by 1 %.

    The convolutions of a grouped one share the mean of their $2XX^\top$; a layer whose inputs are all zero has only
    the damping.
    """
    data = student.inputs.split(student.batch_size)
    hessians = collect_hessians(student.block, data, student.names) if metric == "inputs" else {}
    found = []
    for name, weight in student.weights.items():
        groups, dim = weight.codes.shape[1], weight.codebooks.shape[2]
        unit = torch.eye(dim, dtype=torch.float32, device=weight.scale.device).expand(groups, dim, dim)
        blocks = unit
        if metric == "inputs":
            h = hessians[name] if hessians[name].ndim == 2 else hessians[name].mean(0)  # of a grouped convolution
            size = h.diagonal().mean()
            h = h / torch.where(size == 0, 1, size)  # a layer that is never active has no gradient either
            blocks = h.reshape(groups, dim, groups, dim).diagonal(dim1=0, dim2=2).permute(2, 0, 1) + 0.01 * unit
        found.append(Curvature(blocks, torch.linalg.inv(blocks), metric == "inputs"))
    return found


@dataclass(frozen=True)
class _Layer:
    """What a V step knows of a layer at the codes that it begins from: (out, groups, dim), but for ``gain``."""

    weight: AdditiveWeight
    metric: Curvature
    values: Tensor  # y
    gradient: Tensor  # g
    move: Tensor  # A⁻¹ g

    @property
    def gain(self) -> Tensor:
        """g A⁻¹ g of each group, (out, groups): what a step promises."""
        return (self.gradient * self.move).sum(2)


class VSteps:
    """So many V steps, each on random inputs, with a share of the groups that grows and shrinks with its success."""

    def __init__(
        self, student: AdditiveStudent, *, steps: int, batch_size: int | None, share: float, metric: str, beam: int
    ) -> None:
        self.student, self.steps, self.share, self.beam = student, steps, share, beam
        self.metrics = curvatures(student, metric)
        self.batches = random_batches(
            len(student.inputs), len(student.inputs) if batch_size is None else batch_size, seed=student.seed
        )

    def __call__(self) -> None:
        """Make the V steps of a round."""
        for _ in range(self.steps):
            self.share = v_step(self.student, self.metrics, next(self.batches), self.share, self.beam)


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
    """Change codes where the loss of the samples ``batch`` falls, in place; return the share to try next.

    Args:
        student: its codes are changed.
        metrics: of its layers, see :func:`curvatures`.
        batch: indices of samples, of which gradient, curvature and loss are taken.
        share: τ over the number of groups; at least one group is tried.
        beam: see :func:`nearest_codes`.
        reaches: lengths to try, in units of 1/L.
        tries: subspaces to try, each a quarter of the one before, until the loss falls.
    Returns:
        Twice the share that succeeded, but at most 1, if more than half of its groups changed, else half of it; the
        share that was given if nothing lowered the loss.
    Guarantee: the loss of the samples does not rise; where it does not fall, no code changes. At most τ groups change
        (more only where gains are equal to the digit).
    """
    layers = _layers(student, metrics, batch)
    gains = torch.cat([layer.gain.flatten() for layer in layers])
    before, old = student.mean_loss(batch), [layer.weight.codes.clone() for layer in layers]
    tried = share
    for _ in range(tries):
        count = max(1, round(tried * len(gains)))
        threshold = gains.topk(count).values[-1]
        if threshold <= 0:
            break  # a stationary point, or fewer groups matter than asked for
        chosen = [layer.gain >= threshold for layer in layers]
        size = _step_size(student, batch, layers, chosen)
        candidates = [_moved(layers, chosen, reach * size, beam) for reach in reaches]
        if metrics[0].informed:
            candidates += [_promising(layers, count, reach * size, beam) for reach in reaches]
        best, found = before, old
        for codes in candidates:
            _set_codes(layers, codes)
            loss = student.mean_loss(batch)
            if loss < best:
                best, found = loss, codes
        _set_codes(layers, found)
        if best < before:
            changed = sum(int((a != b).any(2).sum()) for a, b in zip(old, found, strict=True))
            return min(1.0, 2 * tried) if 2 * changed > count else tried / 2
        tried = tried / 4
    return share


def _layers(student: AdditiveStudent, metrics: list[Curvature], batch: Tensor) -> list[_Layer]:
    """Return each layer with its values, and with gradients of the samples ``batch``."""
    weights = student.weights.values()
    matrices = student.decoded()
    gradients = student.gradients(matrices, batch)
    found = []
    for weight, metric, matrix, gradient in zip(weights, metrics, matrices, gradients, strict=True):
        g = _groups(gradient, weight)
        found.append(_Layer(weight, metric, _groups(matrix, weight), g, metric.solve(g)))
    return found


def _groups(matrix: Tensor, weight: AdditiveWeight) -> Tensor:
    """Return a matrix as (out, groups, dim)."""
    return matrix.reshape(*weight.codes.shape[:2], -1)


def _set_codes(layers: list[_Layer], codes: list[Tensor]) -> None:
    for layer, new in zip(layers, codes, strict=True):
        layer.weight.codes.copy_(new)


def _step_size(student: AdditiveStudent, batch: Tensor, layers: list[_Layer], chosen: list[Tensor]) -> float:
    """Return the minimum along the move within the chosen groups, but no step longer than the weights there."""
    moves = [layer.move * mask[:, :, None] for layer, mask in zip(layers, chosen, strict=True)]
    size = sum((layer.values * mask[:, :, None]).square().sum() for layer, mask in zip(layers, chosen, strict=True))
    longest = float(size / sum(move.square().sum() for move in moves)) ** 0.5
    slope = float(sum((layer.gradient * move).sum() for layer, move in zip(layers, moves, strict=True)))
    if longest == 0 or slope <= 0:
        return longest
    epsilon = 0.01 * longest
    there = [(layer.values - epsilon * move).flatten(1) for layer, move in zip(layers, moves, strict=True)]
    gradients = student.gradients(there, batch)
    parts = zip(layers, moves, gradients, strict=True)
    fall = float(sum(((layer.gradient - _groups(new, layer.weight)) * move).sum() for layer, move, new in parts))
    return min(longest, epsilon * slope / fall) if fall > 0 else longest


def _moved(layers: list[_Layer], chosen: list[Tensor], step: float, beam: int) -> list[Tensor]:
    """Return codes in which the ``chosen`` groups are those nearest to y − step · move."""
    found = []
    for layer, mask in zip(layers, chosen, strict=True):
        codes = layer.weight.codes.clone()
        row, group = mask.nonzero(as_tuple=True)
        if len(row):
            books, scale = layer.weight.codebooks.detach(), layer.weight.scale.detach()
            target = (layer.values - step * layer.move)[row, group]
            pieces = AdditiveCodes(codes[row, group][:, None], books, scale[row])
            codes[row, group] = nearest_codes(target, pieces, metric=layer.metric.blocks[group], beam=beam)
        found.append(codes)
    return found


def _promising(layers: list[_Layer], count: int, step: float, beam: int) -> list[Tensor]:
    """Return codes in which those ``count`` groups moved whose quadratic model, rounding included, falls most."""
    everywhere = [torch.ones_like(layer.gain, dtype=torch.bool) for layer in layers]
    codes = _moved(layers, everywhere, step, beam)
    changes = []
    for layer, new in zip(layers, codes, strict=True):
        moved = decode_sum(new, layer.weight.codebooks.detach()) * layer.weight.scale.detach()[:, None]
        delta = _groups(moved, layer.weight) - layer.values
        curved = torch.einsum("ngd,gde,nge->ng", delta, layer.metric.blocks, delta)
        changes.append((layer.gradient * delta).sum(2) + curved / (2 * step))
    threshold = min(0.0, float(torch.cat([c.flatten() for c in changes]).topk(count, largest=False).values[-1]))
    return [
        torch.where(((change <= threshold) & (change < 0))[:, :, None], new, layer.weight.codes)
        for layer, change, new in zip(layers, changes, codes, strict=True)
    ]
