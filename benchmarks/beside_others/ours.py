"""Our own runs, of the same settings as the others'. Like theirs, they compress the model that they are given."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from benchmarks.beside_others.others import Prepared
from benchmarks.beside_others.subject import BITS, DAMP, GROUP, UNIFORM
from mlcomp.deploy import export_compressed_tensors
from mlcomp.deploy.recipes import RECIPES
from mlcomp.layerwise import compress, save
from mlcomp.prune import sparsegpt
from mlcomp.quant import gptq, rtn

METHODS = {
    "rtn": partial(rtn, **UNIFORM),
    "gptq": partial(gptq, damp=DAMP, **UNIFORM),
    "gptq_static": partial(gptq, damp=DAMP, static_groups=True, **UNIFORM),
    "gptq_static_activation": partial(gptq, damp=DAMP, static_groups=True, order="activation", **UNIFORM),
    "gptq_recipe": partial(gptq, **RECIPES.get("gptq", {}) | {"bits": BITS, "group_size": GROUP}),
    "sparsegpt_50": partial(sparsegpt, sparsity=0.5, damp=DAMP),
    "sparsegpt_2_4": partial(sparsegpt, pattern=(2, 4), damp=DAMP),
}


def ours(model: nn.Module, tokenizer: Any, batches: list[Tensor], *, method: str, export: bool) -> Prepared:
    """``compress`` with a method of METHODS; ``export``: also in the format of compressed-tensors."""
    reports = []

    def run() -> nn.Module:
        with tempfile.TemporaryDirectory() as scratch:  # results go there as they are finished, as the command's do
            finished = Path(scratch) / "finished"
            compressed, report = compress(
                model, batches, METHODS[method], progress=False, inplace=True, resume=finished
            )
        reports.append(report)
        return compressed

    def write(compressed: nn.Module, folder: Path) -> None:
        save(compressed, reports[0].results, folder)

    def hand_over(compressed: nn.Module, folder: Path) -> None:
        export_compressed_tensors(compressed, reports[0].results, folder)

    return Prepared(run, write, hand_over if export else None)
