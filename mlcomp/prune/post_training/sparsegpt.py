r"""SparseGPT: prune column after column with OBS updates; all rows share one sequence of inverse Hessians.

Notation: W weight, $H = 2XX^\top$, U with $U^\top U = (H+\lambda I)^{-1}$, n:m means n zeros in every m inputs.
Source: Frantar, Alistarh 2023, arXiv:2301.00774, Algorithm 1.   Syllabus: 2.05, 2.06, 3.11
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mlcomp.checks import check_hessian, check_mask, check_target, check_weight, check_whole, narrowed, removals
from mlcomp.context import isolated
from mlcomp.layerwise.column_sweep import ColumnSweep, check_sweep, column_order, in_order, inverse_factor
from mlcomp.prune.pattern import smallest_mask


@isolated
def sparsegpt(
    weight: Float[Tensor, "out inp"],
    hessian: Float[Tensor, "inp inp"],
    *,
    sparsity: float | None = None,
    pattern: tuple[int, int] | None = None,
    mask: Bool[Tensor, "out inp"] | None = None,
    order: str = "natural",
    damp: float = 0.01,
    mask_block: int = 128,
    block_size: int = 128,
) -> Float[Tensor, "out inp"]:
    r"""Zero the weights of least $w_i^2/U_{ii}^2$ in each block of columns, and let the later columns compensate.

    Args:
        weight: (out, inp), any float dtype; not modified.
        hessian: (inp, inp), $2XX^\top$, float32 or float64; not modified.
        sparsity: share of zeros; each block of ``mask_block`` columns gets that share, spread freely over rows.
        pattern: (n, m), instead of ``sparsity``; where m does not divide inp, the last t < m columns get floor(n·t/m)
            zeros a row.
        mask: True where a weight is kept, instead of both: the updates run on this mask.
        order: "natural", "activation" (large inputs first) or "ascending" (small first); with ``pattern`` "natural".
        damp: share of the mean live diagonal of H added to its diagonal.
        mask_block: columns that choose their zeros together, from weights updated up to there; may exceed inp. 128
            is the paper's; 32 or 64 is often a little better. "ascending" pays only with one block over all columns:
            a block of small inputs alone would keep half of what hardly matters.
        block_size: columns per lazy batch; speed only.
    Returns:
        The pruned and updated weight (out, inp), in the dtype of ``weight``.
    Raises:
        ValueError: malformed weight, H or option; not exactly one target; H + λI singular.
    Guarantee: exactly removals(sparsity, out·inp) weights are removed, ties included (the lowest index goes first),
        or all weights of dead inputs (zero diagonal) if these are more: they are always zero. With a given mask the
        result is that of OBS applied to each row's zeros in column order. It depends neither on ``block_size`` nor on
        the scale of X.
    Cost: 2·out·inp² + inp³ FLOPs.
    Deviations: the count is exact over the matrix, where the published code compares with a threshold; masks follow
        updated weights even where ``mask_block`` is not a multiple of ``block_size``; damping is relative to the
        live inputs only.
    """
    weight = check_weight(weight)
    result = sweep_with_zeros(
        weight,
        hessian,
        lambda column, w: w,
        sparsity=sparsity,
        pattern=pattern,
        mask=mask,
        order=order,
        damp=damp,
        mask_block=mask_block,
        block_size=block_size,
    )
    return narrowed(result, weight.dtype).contiguous()


def sweep_with_zeros(
    weight: Float[Tensor, "out inp"],
    hessian: Float[Tensor, "inp inp"],
    settle: Callable[[int, Float[Tensor, " out"]], Float[Tensor, " out"]],
    *,
    sparsity: float | None,
    pattern: tuple[int, int] | None,
    mask: Bool[Tensor, "out inp"] | None,
    order: str,
    damp: float,
    mask_block: int,
    block_size: int,
) -> Float[Tensor, "out inp"]:
    """Return the swept weight (float64): some weights of each column go to zero, ``settle`` gives the others a value.

    Args:
        settle: called once for each column of the weight as ``settle(column, w)``, in the order of the sweep, with
            the column as it stands by then; returns what the kept weights become (at removed ones it is not looked
            at). The later columns make up for all that changes.
        weight, hessian, sparsity, pattern, mask, order, damp, mask_block, block_size: as for :func:`sparsegpt`.
    Raises:
        ValueError: as :func:`sparsegpt`.
    """
    check_sweep(order, block_size)
    zeros = ZerosOfSweep(
        weight,
        hessian,
        sparsity=sparsity,
        pattern=pattern,
        mask=mask,
        order=order,
        damp=damp,
        mask_block=mask_block,
    )
    result = zeros.start  # of the columns that are fixed; the others are where the sweep has brought them
    sweep = ColumnSweep(result, zeros.factor, block_size=block_size, inplace=True)
    for i, column in enumerate(zeros.columns.tolist()):
        if i in zeros.choices:
            zeros.choose(i, sweep.now(i, zeros.end(i)))
        w = sweep.column()
        q = settle(column, w).masked_fill(zeros.removed[i], 0)
        sweep.fix(w, q)
        result[i] = q
    back = zeros.columns.argsort()
    del zeros, sweep  # the factor is larger than all else
    return result[back].T


class ZerosOfSweep:
    """Which weights a sweep sets to zero: known from its start, or chosen as it comes to them.

    Attributes:
        columns: (inp,), the order of the sweep. factor: U, (inp, inp), float64.
        start: (inp, out), the columns in their order, float64, dead inputs zero.
        removed: (inp, out), True where a weight goes, as far as that is known.
        choices: the columns before which :meth:`choose` has to be called.
    """

    def __init__(
        self,
        weight: Float[Tensor, "out inp"],
        hessian: Float[Tensor, "inp inp"],
        *,
        sparsity: float | None,
        pattern: tuple[int, int] | None,
        mask: Bool[Tensor, "out inp"] | None,
        order: str,
        damp: float,
        mask_block: int,
    ) -> None:
        """Check the arguments, which are those of :func:`sparsegpt`, and factor H."""
        hessian = check_hessian(hessian, weight.shape[1])
        _check_target(weight, sparsity, pattern, mask, order, mask_block)
        self.columns = column_order(hessian, order)
        self.factor, dead = inverse_factor(hessian, self.columns, damp=damp)
        self.dead, self._pattern = dead[self.columns], pattern
        self._some_dead, self._pivots = bool(dead.any()), self.factor.diagonal()[:, None].clone()
        out, inp = weight.shape
        self.start = in_order(weight.T, self.columns).masked_fill_(self.dead[:, None], 0)
        self._quota = _quota(sparsity, out, self.dead) if sparsity is not None else []
        if mask is None:
            self.removed = torch.zeros(inp, out, dtype=torch.bool, device=weight.device)
            self.choices = range(0, inp, mask_block if pattern is None else pattern[1])
        else:
            self.removed, self.choices = (~mask.T[self.columns]).contiguous(), range(0)
        self.removed[self.dead] = True

    def end(self, i: int) -> int:
        """Return where the columns end that choose their zeros together, the first of which is ``i``."""
        return min(i + self.choices.step, len(self.columns))

    def choose(self, i: int, now: Float[Tensor, "columns out"]) -> None:
        """Mark the zeros of columns i … end(i) − 1, which stand at ``now``."""
        end = self.end(i)
        scores = (now / self._pivots[i:end]).square_()
        dead = self.dead[i:end]
        if self._pattern is None:
            scores[dead] = torch.inf  # removed already, and not part of the quota
            count = self._quota[end] - self._quota[i]
            chosen = smallest_mask(scores.T.reshape(1, -1), count).view(scores.shape[1], -1)
        else:
            if self._some_dead:
                scores[dead] = -1  # removed already, and the first zeros of their pattern
            zeros, size = self._pattern  # these columns are one block of it, the last one perhaps cut short
            chosen = smallest_mask(scores.T, zeros * (end - i) // size)
        self.removed[i:end] |= chosen.T


def _quota(sparsity: float, out: int, dead: Bool[Tensor, " inp"]) -> list[int]:
    """Return how many live weights of the first 0, 1, …, inp columns to remove: an even share, exact at the end."""
    live = int((~dead).sum())
    total = max(0, removals(sparsity, out * len(dead)) - out * int(dead.sum()))
    seen = [0, *(~dead).cumsum(0).tolist()]
    return [(2 * total * count + live) // (2 * live) if live else 0 for count in seen]


def _check_target(
    weight: Tensor,
    sparsity: float | None,
    pattern: tuple[int, int] | None,
    mask: Tensor | None,
    order: str,
    mask_block: int,
) -> None:
    """Raise unless exactly one of sparsity, pattern and mask is given, and fits the other options."""
    check_whole("mask_block", mask_block, 1)
    if mask is None:
        check_target(sparsity, pattern)
    elif sparsity is not None or pattern is not None:
        raise ValueError(f"a mask excludes sparsity and pattern, got {sparsity=} and {pattern=} beside it")
    else:
        check_mask("mask", mask, weight)
    if pattern is not None and order != "natural":
        raise ValueError(f"pattern {pattern} means consecutive columns, so order must be natural, got {order!r}")
