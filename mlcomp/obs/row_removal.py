r"""Algorithm 1 of ExactOBS for all rows, in batches: which unit each row loses next, and what that does to the row.

Notation: a unit is c consecutive inputs (c = 1: a weight); B the inverse Hessian over what a row still has;
$s_P = w_P [B_{PP}]^{-1} w_P^\top$ the score of unit P, for single weights $w_p^2/B_{pp}$; it is twice the loss.
Source: Frantar, Singh, Alistarh 2022, arXiv:2208.11580, algorithm 1 and section 4.   Syllabus: 2.05, 2.06
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.layerwise.hessian import damped_hessian, inverse_hessian
from mlcomp.obs.row_inverses import BLOCK, SHRINK, RowInverses, power_of_two, rows_per_batch


def pattern_room(pattern: tuple[int, int], inp: int) -> list[int]:
    """Return how many zeros each group of m inputs gets: n, and floor(n·t/m) in a short last group of t."""
    zeros, size = pattern
    return [zeros * min(size, inp - start) // size for start in range(0, inp, size)]


class RowRemoval:
    """The greedy removal of units from every row of a layer.

    Attributes:
        weight: (out, inp) float64, zero at dead inputs; what ``run`` starts from.
        inverse: (inp, inp) float64, the damped inverse Hessian.
        units: units in a row; a short last one counts.
    """

    def __init__(
        self,
        weight: Tensor,
        hessian: Tensor,
        *,
        width: int,
        damp: float,
        max_bytes: int,
        dtype: torch.dtype = torch.float64,
    ):
        """Check that H can be inverted and that a row fits into ``max_bytes``, and get ready to work in ``dtype``."""
        out, inp = weight.shape
        inverse = inverse_hessian(hessian, damp=damp)
        self.inverse = inverse.inverse
        self.weight = weight.double().masked_fill(inverse.dead, 0)
        self.units, self.width = -(-inp // width), width
        # Powers of two take the weights and the inverse near 1, so that no product leaves a narrow dtype's range.
        live = self.inverse.diagonal()[~inverse.dead]
        self._unit = power_of_two(live.median() if len(live) else torch.ones(()))
        self._scale = power_of_two(self.weight.abs().max())
        # A short last unit is filled up with inputs that are independent of all others and have weight zero.
        size = self.units * width
        self._start = torch.eye(size, dtype=dtype, device=weight.device)
        self._start[:inp, :inp] = self.inverse / self._unit
        diagonal = self._unit * damped_hessian(hessian, damp=damp).matrix.diagonal()
        diagonal = torch.cat([diagonal, diagonal.new_ones(size - inp)])
        self._batch = rows_per_batch(size, out, max_bytes, extra=4 * width, dtype=dtype)
        self._inverses = RowInverses(self._start, diagonal, self._batch)

    def run(self, steps: int, pattern: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
        """Remove ``steps`` units from each row; with a pattern, only while the unit's group of m has room.

        Returns:
            The order of the units (out, steps), and the loss of each step (out, steps), float64.
        """
        padded = torch.nn.functional.pad(self.weight / self._scale, (0, len(self._start) - self.weight.shape[1]))
        done = [self._run_rows(rows, steps, pattern) for rows in padded.to(self._start.dtype).split(self._batch)]
        order, losses = (torch.cat(parts) for parts in zip(*done, strict=True))
        return order, losses.double() * (self._scale * (self._scale / self._unit))

    def _run_rows(self, w: Tensor, steps: int, pattern: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
        self._begin(w.clone(), pattern)
        order = torch.empty(len(w), steps, dtype=torch.int64, device=w.device)
        losses = w.new_empty(len(w), steps)
        for step in range(steps):
            scores = block_scores(self._blocks, self._w.view(len(w), -1, self.width)).add_(self._barred)
            at = scores.argmin(1, keepdim=True)
            losses[:, step] = scores.gather(1, at)[:, 0] / 2
            order[:, step] = self._inverses.index.gather(1, at * self.width)[:, 0] // self.width
            self._remove(at)
            if step + 1 < steps:
                self._drop(self.units - step - 1)
        return order, losses

    def _begin(self, w: Tensor, pattern: tuple[int, int] | None) -> None:
        rows, c = len(w), self.width
        self._inverses.reset(rows)
        self._w = w
        # The c×c diagonal blocks of the inverse, (c, c, rows, units): all that the scores need.
        blocks = self._start.view(self.units, c, self.units, c).diagonal(dim1=0, dim2=2)
        self._blocks = blocks[:, :, None].repeat(1, 1, rows, 1)
        self._eye = torch.eye(c, dtype=w.dtype, device=w.device)[:, :, None, None].expand(c, c, rows, 1)
        self._barred = w.new_zeros(rows, self.units)  # infinite: removed, or may not be
        self._group = None
        if pattern is not None:
            self._group = self._inverses.index // pattern[1]
            self._room = torch.tensor(pattern_room(pattern, w.shape[1]), device=w.device).repeat(rows, 1)
            self._barred.masked_fill_(self._room.gather(1, self._group) == 0, torch.inf)

    def _remove(self, at: Tensor) -> None:
        """Remove unit ``at`` (rows, 1) from each row, input by input, and update weights, blocks and room."""
        rows, c = len(at), self.width
        for first in range(0, c, BLOCK):
            position = at * c + first
            vectors, roots = self._inverses.eliminate_run(position[:, 0], min(BLOCK, c - first))
            for i, vector in enumerate(vectors.unbind(1)):
                self._w.addcmul_(vector, self._w.gather(1, position + i) / roots[:, i, None], value=-1)
                part = vector.view(rows, -1, c).permute(2, 0, 1)
                self._blocks.addcmul_(part[:, None], part[None], value=-1)
        self._barred.scatter_(1, at, torch.inf)
        # A regular block in place of the removed one keeps its score a number, to which infinity is added.
        self._blocks.scatter_(3, at.expand(c, c, rows, 1), self._eye)
        if self._group is not None:
            here = self._group.gather(1, at)
            self._room.scatter_add_(1, here, -torch.ones_like(here))
            full = self._room.gather(1, here) == 0
            self._barred.masked_fill_((self._group == here) & full, torch.inf)

    def _drop(self, left: int) -> None:
        """Forget the units that are barred, once they are many; of ``left`` units none is removed.

        What happens to the weights of a unit that stays for good does not matter to the choice of others.
        """
        rows, c = len(self._barred), self.width
        if self._group is not None:
            left = int((self._barred == 0).sum(1).max())  # rows differ; one with less keeps some that are barred
        if left > SHRINK * self._barred.shape[1]:
            return
        free = self._barred == 0
        keep = (~free).to(torch.uint8).argsort(dim=1, stable=True)[:, :left].sort(1).values
        columns = (keep[:, :, None] * c + torch.arange(c, device=keep.device)).flatten(1)
        self._inverses.compact(columns)
        self._w = self._w.gather(1, columns)
        self._blocks = self._blocks.gather(3, keep.expand(c, c, rows, left))
        self._barred = self._barred.gather(1, keep)
        if self._group is not None:
            self._group = self._group.gather(1, keep)


def block_scores(
    blocks: Float[Tensor, "c c rows units"], weight: Float[Tensor, "rows units c"]
) -> Float[Tensor, "rows units"]:
    r"""Return $w_P [B_{PP}]^{-1} w_P^\top$ of every unit: $w_p^2/B_{pp}$ for single weights.

    By elimination inside each block, all blocks at once: c steps instead of a c×c solve for every row and block.
    """
    c = len(blocks)
    w = list(weight.unbind(2))
    score = w[0].square().div_(blocks[0, 0])
    for j in range(c):
        pivot = blocks[j, j]
        if j:
            score += w[j].square().div_(pivot)
        if j + 1 < c:
            ratio = blocks[:, j] / pivot
            w = [w[i] - ratio[i] * w[j] if i > j else w[i] for i in range(c)]
            blocks = blocks - ratio[:, None] * blocks[j]
    return score
