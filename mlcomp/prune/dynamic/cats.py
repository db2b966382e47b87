r"""CATS: activations of a gated MLP that are small for this token become zero; the threshold comes from real tokens.

Notation: $v = \mathrm{SiLU}(W_{gate} x)$; one threshold t for each MLP, the quantile of |v| over calibration tokens
and neurons. $\mathrm{CATS}_t(v) = v$ where $|v| \ge t$, else 0.
Source: Lee et al. 2024, arXiv:2404.08763, stages 1 and 2 (threshold, activation). Weights stay as they are: nothing
is saved but time, by :func:`mlcomp.prune.sparse_gated_mlp`.   Syllabus: 3.13
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from mlcomp.checks import check_choice, check_interval, check_sparsity, removals
from mlcomp.context import isolated, isolated_run
from mlcomp.layerwise.fit import copy_model
from mlcomp.layerwise.running import check_batches
from mlcomp.layerwise.valid import Valid
from mlcomp.layerwise.weights import replace_module
from mlcomp.prune.dynamic.gated_mlps import SITES, GatedMLP, activations, find_gated_mlps


@isolated_run
def cats(model: nn.Module, batches: Iterable, *, sparsity: float, on: str = "gate", valid: Valid = None) -> nn.Module:
    """Return a copy of ``model`` whose gated MLPs set a share of their activations to zero.

    Args:
        model: a language model with gated MLPs (LLaMA, Mistral, Qwen …), any activation; not modified.
        batches, sparsity, on, valid: see :func:`activation_thresholds`.
    Returns:
        the copy; it computes densely, so it shows what is lost and not how fast it can be.
    Raises:
        ValueError: as :func:`activation_thresholds`.
    """
    return threshold_mlps(model, activation_thresholds(model, batches, sparsity=sparsity, on=on, valid=valid), on=on)


@isolated_run
def activation_thresholds(
    model: nn.Module, batches: Iterable, *, sparsity: float, on: str = "gate", valid: Valid = None
) -> dict[str, float]:
    r"""Return name of a gated MLP → threshold below which a share ``sparsity`` of its activations lies.

    Args:
        model: run in eval mode without gradients; not modified.
        batches: calibration tokens, as for :func:`mlcomp.layerwise.compress`.
        sparsity: share of activations to be set to zero, in [0, 1].
        on: "gate", as in the paper: |v|, known before the rows of up are read. "product": |v · up x|, which shows
            better what a neuron adds, but is known only after both projections.
        valid: the positions to count, for padded text ("attention_mask"); see
            :func:`mlcomp.layerwise.collect_hessians`. Without it padding counts like text.
    Raises:
        ValueError: ``sparsity`` outside [0, 1], another ``on``, no gated MLP, no batches, an MLP that is never
            called, NaN or inf in the activations.
    Guarantee: of the n activations of each MLP on ``batches``, exactly ``sparsity``·n, rounded half up, are smaller
        in size than its threshold, or fewer where several are equal to it. 0 gives the threshold 0, 1 infinity.
    Cost: one pass; memory 4 bytes for each token and neuron (0.18 MB a token of SmolLM2).
    """
    check_sparsity(sparsity)
    check_choice("on", on, SITES)
    check_batches(batches)
    found: dict[str, list[Tensor]] = {}
    for name, values in activations(model, batches, on=on, valid=valid):
        wide = torch.promote_types(values.dtype, torch.float32)
        found.setdefault(name, []).append(values.abs().to(wide).flatten())
    return {name: _quantile(torch.cat(found.pop(name)), sparsity) for name in list(found)}


def _quantile(values: Tensor, share: float) -> float:
    """Return the value with ``share`` of all, rounded half up, in front of it; 0 before the first."""
    below = removals(share, len(values))
    if below in (0, len(values)):
        return math.inf if below else 0.0
    return float(values.kthvalue(below + 1).values)


@isolated
def threshold_mlps(model: nn.Module, thresholds: Mapping[str, float], *, on: str = "gate") -> nn.Module:
    """Return a copy of ``model`` whose gated MLPs named in ``thresholds`` set smaller activations to zero.

    Args:
        model: not modified. Thresholds that it has already are replaced.
        thresholds: name of a gated MLP → t ≥ 0.
        on: "gate" or "product"; see :func:`activation_thresholds`.
    Raises:
        ValueError: a name that is no gated MLP, a threshold that is negative or NaN, another ``on``.
    """
    check_choice("on", on, SITES)
    result = copy_model(model)
    mlps = find_gated_mlps(result)
    for name, threshold in thresholds.items():
        if name not in mlps:
            raise ValueError(f"thresholds names {name!r}, which is no gated MLP; these are {', '.join(mlps)}")
        check_interval(f"thresholds[{name!r}]", threshold, "[0, inf]")
        result = replace_module(result, name, GatedMLP(mlps[name], threshold=float(threshold), on=on))
    return result


@isolated_run
def activation_sparsity(model: nn.Module, batches: Iterable, *, valid: Valid = None) -> dict[str, float]:
    """Return name of a gated MLP → share of zeros among what its ``down_proj`` reads.

    Args:
        model: dense, thresholded or relufied; run in eval mode without gradients, not modified.
        batches, valid: see :func:`activation_thresholds`.
    Raises:
        ValueError: no gated MLP, no batches, an MLP that is never called, NaN or inf in the activations.
    """
    check_batches(batches)
    zeros: dict[str, int] = {}
    total: dict[str, int] = {}
    for name, values in activations(model, batches, on="product", valid=valid):
        zeros[name] = zeros.get(name, 0) + int((values == 0).sum())
        total[name] = total.get(name, 0) + values.numel()
    return {name: zeros[name] / total[name] for name in total}
