"""The list of runs: name → whose it is, what it is, and how it is prepared."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import mlcomp
from benchmarks.beside_others import others
from benchmarks.beside_others.others import gptq_modifier, llm_compressor, rtn_modifier, sparsegpt_modifier

W4 = "4 bits, groups of 64, symmetric"


@dataclass(frozen=True)
class Run:
    """One row of the table.

    Attributes:
        library: the name of its distribution, which tells the version.
        method, setting: in words.
        prepare: (model, tokenizer, calibration batches) → :class:`others.Prepared`.
        optional: only when it is asked for by name.
    """

    library: str
    method: str
    setting: str
    prepare: Callable
    optional: bool = False

    def version(self) -> str | None:
        """Return the version of the library, or None where it is not installed."""
        if self.library == "mlcomp":
            return mlcomp.__version__
        try:
            return version(self.library)
        except PackageNotFoundError:
            return None


def _ours(method: str, *, export: bool = True) -> Callable:
    """Return the preparation of one of our runs, importing the library's methods only there."""

    def prepare(*subject: object) -> others.Prepared:
        from benchmarks.beside_others.ours import ours

        return ours(*subject, method=method, export=export)

    return prepare


def _compressor(recipe: Callable, **options: object) -> Callable:
    return partial(llm_compressor, recipe=partial(recipe, **options))


RUNS = {
    "dense": Run("transformers", "dense", "float32", others.dense),
    "llmcompressor_rtn": Run("llmcompressor", "round to nearest", W4, _compressor(rtn_modifier)),
    "torchao_intx": Run("torchao", "round to nearest", W4, others.torchao),
    "quanto_qint4": Run("optimum-quanto", "round to nearest", "4 bits, groups of 96 or 128, affine", others.quanto),
    "mlcomp_rtn": Run("mlcomp", "round to nearest", W4, _ours("rtn")),
    "hqq": Run("hqq", "HQQ", "4 bits, groups of 64, affine, real zero points", others.hqq),
    "llmcompressor_gptq_natural": Run(
        "llmcompressor", "GPTQ", f"{W4}, natural order", _compressor(gptq_modifier, actorder=None)
    ),
    "llmcompressor_gptq": Run("llmcompressor", "GPTQ", f"{W4}, its default order", _compressor(gptq_modifier)),
    "neural_compressor_gptq": Run("neural_compressor_pt", "GPTQ", W4, others.neural_compressor),
    "mlcomp_gptq_static": Run("mlcomp", "GPTQ", f"{W4}, natural order, fixed grids", _ours("gptq_static")),
    "mlcomp_gptq_static_activation": Run(
        "mlcomp", "GPTQ", f"{W4}, order by activation, fixed grids", _ours("gptq_static_activation")
    ),
    "mlcomp_gptq": Run("mlcomp", "GPTQ", f"{W4}, its default order", _ours("gptq")),
    "mlcomp_gptq_recipe": Run("mlcomp", "GPTQ", "4 bits, groups of 64, affine, our recipe", _ours("gptq_recipe")),
    "autoround_10": Run("auto-round", "AutoRound", f"{W4}, 10 iterations", partial(others.auto_round, iters=10)),
    "autoround_200": Run(
        "auto-round", "AutoRound", f"{W4}, 200 iterations, its default", partial(others.auto_round, iters=200), True
    ),
    "llmcompressor_sparsegpt_50": Run(
        "llmcompressor", "SparseGPT", "50 % zeros", _compressor(sparsegpt_modifier, mask_structure="0:0")
    ),
    "mlcomp_sparsegpt_50": Run("mlcomp", "SparseGPT", "50 % zeros", _ours("sparsegpt_50", export=False)),
    "llmcompressor_sparsegpt_2_4": Run(
        "llmcompressor", "SparseGPT", "2:4", _compressor(sparsegpt_modifier, mask_structure="2:4")
    ),
    "mlcomp_sparsegpt_2_4": Run("mlcomp", "SparseGPT", "2:4", _ours("sparsegpt_2_4", export=False)),
}
