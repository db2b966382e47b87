"""Compressed models side by side: size, coverage and quality, from what their folders say or measured again."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlcomp.context import isolated_run
from mlcomp.deploy.calibration_inputs import draw_inputs
from mlcomp.deploy.kept_folder import options_told, read_run
from mlcomp.deploy.measure import language_perplexity
from mlcomp.deploy.open_model import open_model
from mlcomp.deploy.opened_model import LANGUAGE_MODEL, OpenedModel
from mlcomp.deploy.transformers_models import from_transformers, longest_text
from mlcomp.extras import need
from mlcomp.layerwise.load import load
from mlcomp.layerwise.report import CompressionReport
from mlcomp.layerwise.report_tables import worst_layers


@dataclass(frozen=True)
class ComparedModel:
    """One kept model.

    Attributes:
        folder: where it lies.
        model, method: what was compressed, and how, with its options.
        nbytes: of its file of weights, nbytes_before: of the dense model.
        bits_per_weight: of the compressed layers, covered: their share of all weights.
        perplexity: of a language model, else None; it was ``dense_perplexity`` before (None: measured again).
        output_error: of another model, relative to the dense one's outputs, same_class: share of inputs with the same
            class; else None.
        worst_layer: its name and the largest error of a layer's output; None without a layer.
    """

    folder: Path
    model: str
    method: str
    nbytes: int
    nbytes_before: int
    bits_per_weight: float
    covered: float
    perplexity: float | None
    dense_perplexity: float | None
    output_error: float | None
    same_class: float | None
    worst_layer: tuple[str, float] | None

    @property
    def quality(self) -> str:
        """The measure that there is, in words."""
        if self.perplexity is not None:
            before = "" if self.dense_perplexity is None else f" (dense {self.dense_perplexity:.2f})"
            return f"perplexity {self.perplexity:.2f}{before}"
        if self.output_error is None:
            return "not measured"
        same = "" if self.same_class is None else f"{self.same_class:.1%} the same class, "
        return f"{same}output error {self.output_error:.2g}"


@isolated_run
def compare_models(
    folders: Sequence[str | os.PathLike], *, text: str | os.PathLike | None = None, tokens: int | None = None
) -> list[ComparedModel]:
    """Return what is known of compressed models, in the order given.

    Args:
        folders: of :func:`compress_model`.
        text: a text file on which the perplexity of each is measured now; None: what was measured when it was made.
        tokens: of a sequence of it; None: 256.
    Raises:
        ValueError: no folder; a folder without a finished model; with ``text``, a model that is no language model, or
            one kept in a format that is read elsewhere.
        FileNotFoundError: no such text.
    Cost: with ``text``: each model is loaded, one after the other, and reads the first 8 sequences.
    """
    if not folders or isinstance(folders, str | os.PathLike):
        raise ValueError("give the folders of compressed models in a list")
    runs = [read_run(folder) for folder in folders]
    rows = [_known(Path(folder), run) for folder, run in zip(folders, runs, strict=True)]
    if text is None:
        return rows
    if not Path(text).is_file():
        raise FileNotFoundError(f"there is no text file {text}")
    return [_measured(row, run, text, tokens) for row, run in zip(rows, runs, strict=True)]


def _known(folder: Path, run: dict[str, Any]) -> ComparedModel:
    report = CompressionReport.from_json(folder / "report.json")
    done = [row for row in report.rows if row.status == "compressed"]
    worst = next(iter(worst_layers(report.rows)), None)
    before, after = run.get("perplexity") or (None, None)
    agreement = run.get("agreement") or {}
    return ComparedModel(
        folder=folder,
        model=run["model"],
        method=" ".join(filter(None, [run["method"], options_told(run)])),
        nbytes=run["nbytes_after"],
        nbytes_before=run["nbytes_before"],
        bits_per_weight=8 * sum(row.nbytes_after for row in done) / max(1, report.compressed_weights),
        covered=report.covered,
        perplexity=after,
        dense_perplexity=before,
        output_error=agreement.get("output_error"),
        same_class=agreement.get("same_class"),
        worst_layer=None if worst is None else (worst[1].name, worst[0]),
    )


def _measured(row: ComparedModel, run: dict[str, Any], text: str | os.PathLike, tokens: int | None) -> ComparedModel:
    if row.perplexity is None:
        raise ValueError(f"{row.folder} holds no language model, so a text says nothing about it")
    opened = _open_kept(row.folder, run)
    inputs = draw_inputs(opened, text, text, samples=1, tokens=tokens, seed=0)
    perplexity = language_perplexity(opened.model, inputs.measured)
    return replace(row, perplexity=perplexity, dense_perplexity=None)


def _open_kept(folder: Path, run: dict[str, Any]) -> OpenedModel:
    if run["format"] != "mlcomp":
        return from_transformers(str(folder), "", pretrained=True, hub=False)
    if not (folder / "config.json").exists():
        opened = open_model(run["model"])
        return replace(opened, model=load(folder, model=opened.model))
    tokenizer = need("transformers", "notebooks").AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = load(folder)
    return OpenedModel(str(folder), model, tokenizer, LANGUAGE_MODEL, longest=longest_text(model))
