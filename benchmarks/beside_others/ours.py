"""Our own runs, of the same settings as the others'."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from benchmarks.beside_others.others import Prepared
from benchmarks.beside_others.subject import DAMP, UNIFORM
from mlcomp.layerwise import compress, save
from mlcomp.prune import sparsegpt
from mlcomp.quant import gptq, rtn

METHODS = {
    "rtn": partial(rtn, **UNIFORM),
    "gptq": partial(gptq, damp=DAMP, **UNIFORM),
    "gptq_static": partial(gptq, damp=DAMP, static_groups=True, **UNIFORM),
    "gptq_static_activation": partial(gptq, damp=DAMP, static_groups=True, order="activation", **UNIFORM),
    "sparsegpt_50": partial(sparsegpt, sparsity=0.5, damp=DAMP),
    "sparsegpt_2_4": partial(sparsegpt, pattern=(2, 4), damp=DAMP),
}


def ours(
    model: nn.Module, tokenizer: Any, batches: list[Tensor], *, method: str | Callable, **options: Any
) -> Prepared:
    """``compress`` with a method of METHODS, or any other that takes a weight and H."""
    chosen = METHODS[method] if isinstance(method, str) else method
    reports = []

    def run() -> nn.Module:
        compressed, report = compress(model, batches, chosen, progress=False, **options)
        reports.append(report)
        return compressed

    def write(compressed: nn.Module, folder: Path) -> None:
        save(compressed, reports[0].results, folder)

    return Prepared(run, write)
