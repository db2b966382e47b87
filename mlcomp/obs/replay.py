r"""Replay an ExactOBS trace once and keep the weights at many levels on the way.

Notation: k weights that a row has lost, $B = H^{-1}$ of a row over the inputs it still has.
Source: Frantar, Singh, Alistarh 2022, arXiv:2208.11580, sections 4 and 6: a trace gives the order, a database needs
the weights at many points of it. A group update re-solves each point on its own; this is one more run of Algorithm 1.
Syllabus: 2.05, 2.10
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlcomp.checks import check_codes, check_tensor, narrowed
from mlcomp.context import isolated
from mlcomp.obs.row_inverses import SHRINK, RowInverses, rows_per_batch
from mlcomp.obs.trace import Trace


@isolated
def replay(
    trace: Trace, counts: Int[Tensor, "levels out"], *, max_bytes: int = 2**28
) -> Float[Tensor, "levels out inp"]:
    """Return, for each level, the weights when row i has lost its first ``counts[level, i]`` weights.

    Args:
        trace: of single weights (block_size 1); not modified.
        counts: whole numbers from 0 to the removals of the trace.
        max_bytes: bound on the working memory; the result takes levels·out·inp more.
    Returns:
        (levels, out, inp) in the dtype of the traced weight; removed weights are exact zeros.
    Raises:
        ValueError: blocks, counts out of range or of another shape.
    Guarantee: equal to ``trace.weights_at(counts[level])`` up to float64 rounding.
    Cost: one run of ExactOBS to the largest count, for all levels together.
    """
    out, inp = trace.weight.shape
    if trace.block_size != 1:
        raise ValueError(f"only traces of single weights can be replayed, got block_size={trace.block_size}")
    check_tensor("counts", counts)
    if counts.ndim != 2 or counts.numel() == 0 or counts.shape[1] != out or counts.is_floating_point():
        raise ValueError(f"counts must be whole numbers (levels, {out}), got {counts.dtype} {tuple(counts.shape)}")
    check_codes("counts", counts, trace.order.shape[1])
    size = rows_per_batch(inp, out, max_bytes)
    hessian_diagonal = torch.cholesky_inverse(torch.linalg.cholesky(trace.inverse)).diagonal()
    state = RowInverses(trace.inverse, hessian_diagonal, size)
    result = torch.empty(len(counts), out, inp, dtype=trace.dtype, device=trace.weight.device)
    for rows in torch.arange(out, device=trace.weight.device).split(size):
        result[:, rows] = narrowed(
            _replay_rows(trace.weight[rows], trace.order[rows], counts[:, rows], state), trace.dtype
        )
    return result


def _replay_rows(weight: Tensor, order: Tensor, counts: Tensor, state: RowInverses) -> Tensor:
    rows, inp = weight.shape
    w, gone = weight.clone(), torch.zeros_like(weight, dtype=torch.bool)
    result = weight.new_empty(len(counts), rows, inp)
    stops, last = set(counts.unique().tolist()), int(counts.max())
    state.reset(rows)
    for step in range(last + 1):
        if step in stops:
            full = torch.zeros_like(weight).scatter_(1, state.index, w.masked_fill(gone, 0))
            result = torch.where((counts == step)[:, :, None], full, result)
        if step == last:
            break
        at = torch.searchsorted(state.index, order[:, step, None].contiguous())
        vector, root = state.eliminate(at[:, 0])
        w.addcmul_(vector, w.gather(1, at) / root, value=-1)
        gone.scatter_(1, at, True)
        left = inp - step - 1
        if 0 < left <= SHRINK * gone.shape[1]:
            keep = (~gone).nonzero()[:, 1].view(rows, left)
            state.compact(keep)
            w, gone = w.gather(1, keep), gone.gather(1, keep)
    return result
