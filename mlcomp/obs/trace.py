r"""What ExactOBS recorded on its way: from one trace, the weights at any sparsity of any row.

Notation: k the number of units (weights, or blocks of c) that a row has lost.
Source: Frantar, Singh, Alistarh 2022, arXiv:2208.11580, section 4 ("global step" and group update).
Syllabus: 2.05, 2.06, 2.10
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mlcomp.checks import narrowed
from mlcomp.context import isolated
from mlcomp.obs.group_update import update_rows


@dataclass(frozen=True)
class Trace:
    r"""Order and losses of the removals in each row.

    Attributes:
        weight: (out, inp) float64, the weight that was pruned; zero at dead inputs.
        inverse: (inp, inp) float64, the damped inverse Hessian.
        order: (out, k) the units in the order in which they were removed; unit u is inputs c·u … c·u + c − 1.
        losses: (out, k) float64, the increase of $\tfrac12\,\delta w\,H\,\delta w^\top = \lVert \delta w X\rVert^2$
            (with the damped H) by each removal. Never negative, but not monotone.
        block_size: c, inputs per unit.
        dtype: of the weight that was given and of those that come back.
    """

    weight: Float[Tensor, "out inp"]
    inverse: Float[Tensor, "inp inp"]
    order: Int[Tensor, "out k"]
    losses: Float[Tensor, "out k"]
    block_size: int
    dtype: torch.dtype

    @property
    def units(self) -> int:
        """Units in a row: inputs, or blocks of inputs (a short last block counts)."""
        return -(-self.weight.shape[1] // self.block_size)

    @isolated
    def total_losses(self) -> Float[Tensor, "out k1"]:
        """Return (out, k + 1): the loss of each row after 0, 1, …, k removals."""
        return torch.nn.functional.pad(self.losses.cumsum(1), (1, 0))

    @isolated
    def removed_at(self, counts: int | Int[Tensor, " out"]) -> Bool[Tensor, "out inp"]:
        """Return where a weight is removed when row i has lost its first ``counts[i]`` units (an int: every row)."""
        out, steps = self.order.shape
        counts = torch.as_tensor(counts, device=self.order.device).expand(out)
        if counts.dtype.is_floating_point or int(counts.min()) < 0 or int(counts.max()) > steps:
            raise ValueError(
                f"counts must be whole numbers from 0 to the {steps} removals of the trace, got {counts.tolist()[:8]}"
            )
        taken = torch.arange(steps, device=self.order.device) < counts[:, None]
        unit = torch.zeros(out, self.units, dtype=torch.bool, device=self.order.device).scatter_(1, self.order, taken)
        return unit.repeat_interleave(self.block_size, dim=1)[:, : self.weight.shape[1]]

    @isolated
    def weights_at(self, counts: int | Int[Tensor, " out"], *, max_bytes: int = 2**28) -> Float[Tensor, "out inp"]:
        """Return the pruned weights at these counts, optimal on their mask (the group update, in float64)."""
        rows, _ = update_rows(self.weight, self.removed_at(counts), self.inverse, max_bytes=max_bytes)
        return narrowed(rows, self.dtype)
