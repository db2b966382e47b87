r"""Any method beside all others of the book: on the same model, with the same measures, in one picture.

Notation: a method is a function (weight, hessian) with $H = 2XX^\top$ of each layer's inputs; it returns a weight, or
a result with ``dequantize()`` and ``nbytes``.
Source: the picture is a Pareto front, Kung, Luccio, Preparata 1975, Journal of the ACM 22(4).   Syllabus: 1.16
"""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mlcomp.compare.pareto import pareto_front
from mlcomp.compare.stored_layer import store
from mlcomp.compare.subject import Subject, minilm_subject
from mlcomp.context import isolated_run
from mlcomp.data.committed_table import committed_table
from mlcomp.metrics.model import hessian_error
from mlcomp.quant.post_training.fake_quantized import FakeQuantized

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEED = 0
# Kind → title, a colour that is readable on white and on black, matplotlib's mark.
KINDS = {
    "reference": ("Reference", "#808080", "+"),
    "scalar": ("Each weight on its own", "#3b82c4", "s"),
    "compensated": ("Codes chosen with the Hessian", "#d97706", "^"),
    "vector": ("Several weights to a code", "#2f9e5b", "D"),
    "pruning": ("Zeros", "#a259c4", "x"),
    "both": ("Zeros and codes", "#d6455d", "p"),
    "tuned": ("Tuned to outputs of blocks or network", "#0f8f9c", "v"),
}


@isolated_run
def measure_method(
    name: str,
    method: Callable[[Tensor, Tensor], Any],
    *,
    pattern: tuple[int, int] | None = None,
    subject: Subject | None = None,
) -> dict[str, str]:
    """Compress every layer by a method of your own, and return its row of the table of every method.

    Args:
        name: what the picture shows.
        method: (weight, hessian) → a tensor like weight, or a result with ``dequantize()`` and ``nbytes``. It gets
            copies, layer after layer of the dense model, with the global generator seeded anew for each.
        pattern: (n, m) if the weights have n zeros in every m inputs, so that places are stored instead of a mask.
        subject: model, Hessians and measure. None: MiniLM, as for all rows of ``committed_table("every_method")``.
    Returns:
        The columns of that table that do not depend on who ran it. ``seconds`` are processor seconds, and
        ``hessian_seconds`` those of collecting the Hessians.
    Raises:
        TypeError: the method is not callable, or returns neither a tensor nor such a result.
        ValueError: a weight of another shape than the layer's, or with NaN or inf.
    Guarantee: the subject's model stays as it is; sizes are those of packed arrays, where they can be packed.
    Cost: the method on each layer; MiniLM's model and Hessians take seconds, and once.
    """
    if not callable(method):
        raise TypeError(f"method must be a function of (weight, hessian), got {type(method).__name__}")
    subject = subject or _minilm()
    start = time.process_time()
    results = layer_by_layer(method, subject)
    seconds = time.process_time() - start
    row = {"method": name, "kind": "own", "setting": "" if pattern is None else f"pattern={pattern[0]}:{pattern[1]}"}
    row |= measured(copy.deepcopy(subject.model), results, subject, pattern)
    return row | {"seconds": f"{seconds:.2f}", "hessian_seconds": f"{subject.hessian_seconds:.2f}"}


def layer_by_layer(method: Callable[[Tensor, Tensor], Any], subject: Subject) -> dict[str, Any]:
    """Return what a method gives for each layer of the dense model; it gets copies."""
    results = {}
    with torch.random.fork_rng(devices=[]):
        for layer, hessian in subject.hessians.items():
            torch.manual_seed(SEED)  # for a method that draws from the global generator
            results[layer] = method(_weight(subject.model.get_submodule(layer)).clone(), hessian.clone())
    return results


def measured(
    model: nn.Module, results: Mapping[str, Any], subject: Subject, pattern: tuple[int, int] | None = None
) -> dict[str, str]:
    """Return size and quality of compressed layers, as the table has them; the stored weights are put into ``model``.

    Args:
        model: a copy of the subject's, whose other parameters may have changed.
        results: layer name → what a method returned for it.
        subject, pattern: as for :func:`measure_method`.
    Raises:
        TypeError: a result that cannot be stored.
        ValueError: a weight of another shape than the layer's, or with NaN or inf.
    """
    nbytes = weights = 0
    errors, packed = [], True
    for name, hessian in subject.hessians.items():
        weight, stored = _weight(subject.model.get_submodule(name)), store(results[name], pattern)
        if stored.weight.shape != weight.shape or not stored.weight.isfinite().all():
            got = f"{tuple(stored.weight.shape)}, {int((~stored.weight.isfinite()).sum())} not finite"
            raise ValueError(f"{name}: a finite weight of shape {tuple(weight.shape)} is expected, got {got}")
        errors.append(hessian_error(weight, stored.weight, hessian))
        nbytes, weights = nbytes + stored.nbytes, weights + weight.numel()
        packed = packed and stored.arrays is not None
        layer = model.get_submodule(name)
        with torch.no_grad():
            _weight(layer.layer if isinstance(layer, FakeQuantized) else layer).copy_(stored.weight)
    similarity, recall = subject.quality(model)
    return {
        "bits_per_weight": f"{8 * nbytes / weights:.4f}", "megabytes": f"{nbytes / 1e6:.3f}",
        "size": "packed" if packed else "counted", "layer_error": f"{sum(errors) / len(errors):.6f}",
        "similarity": f"{similarity:.6f}", "recall_at_10": f"{recall:.4f}",
    }  # fmt: skip


def front_of_methods(rows: Sequence[Mapping[str, str]]) -> list[int]:
    """Return which rows no other beats in bits per weight without losing similarity, the smallest first."""
    sizes, qualities = ([float(row[column]) for row in rows] for column in ("bits_per_weight", "similarity"))
    return pareto_front(sizes, qualities)


def picture_of_methods(own: Sequence[Mapping[str, str]] = ()) -> "Figure":
    """Draw the committed rows of every method and, by name, your own.

    Args:
        own: rows of :func:`measure_method` on MiniLM.
    Returns:
        A matplotlib figure: bits per weight against 1 − cosine, both logarithmic; the front through all rows, dashed.
    """
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FixedLocator, NullFormatter, ScalarFormatter

    rows = [*committed_table("every_method"), *own]
    points = [(float(row["bits_per_weight"]), max(1 - float(row["similarity"]), 2e-4)) for row in rows]
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for kind, (title, colour, mark) in KINDS.items():
        chosen = [point for row, point in zip(rows, points, strict=True) if row["kind"] == kind]
        bits, errors = zip(*chosen, strict=True)
        axes.scatter(bits, errors, s=28, color=colour, marker=mark, alpha=0.6, label=title)
    best = front_of_methods(rows)
    axes.step(
        *zip(*(points[i] for i in best), strict=True), where="post", color="#6b7280", linestyle="--", linewidth=1
    )
    for i, row in enumerate(rows):
        if row["kind"] == "own":
            axes.plot(*points[i], "*", color="black", markersize=14)
            told = f"{row['method']}, on the front" if i in best else row["method"]
            axes.annotate(told, points[i], (9, 6), textcoords="offset points", weight="bold")
    axes.set(xscale="log", yscale="log", xlabel="bits per weight", ylabel="1 − cosine with the dense model's vectors")
    axes.xaxis.set_major_locator(FixedLocator([1, 2, 3, 4, 6, 8, 12, 16]))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend(fontsize=8, loc="lower left")
    return figure


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


@cache
def _minilm() -> Subject:
    return minilm_subject()
