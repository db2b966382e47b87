"""A model by its name, compressed, measured and kept, with one call."""

import logging
import os
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import mlcomp
from mlcomp.context import isolated_run
from mlcomp.deploy.calibration_inputs import Data, Inputs, draw_inputs
from mlcomp.deploy.chosen_layers import Layers, choose, output_head, with_head_named
from mlcomp.deploy.compressors import Compressor, bind, find_compressor
from mlcomp.deploy.kept_folder import KeptFolder
from mlcomp.deploy.measure import Agreement, Measure
from mlcomp.deploy.open_model import open_model
from mlcomp.deploy.opened_model import LANGUAGE_MODEL, NETWORK, OpenedModel
from mlcomp.deploy.transformers_models import kind_of, longest_text
from mlcomp.layerwise.compress import compress
from mlcomp.layerwise.report import CompressionReport
from mlcomp.layerwise.report_tables import worst_layers
from mlcomp.workers import Map, check_map

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompressedModel:
    """What :func:`compress_model` returns; as text, the lines to read after a run.

    Attributes:
        model: the compressed copy, with dense weights.
        report: what happened to each layer.
        folder: where it is kept; None if it is not.
        perplexity: of a language model before and after, on the held-out text; else None.
        agreement: of another model with the dense one, on the held-out inputs; else None.
        nbytes_before: of all parameters and buffers, dense.
        nbytes_after: of the model's file, or without a folder what it would be.
        run: what was done, as the folder's run.json has it.
        seconds: of compressing, layers and what was run of the model for them.
    """

    model: nn.Module
    report: CompressionReport
    folder: Path | None
    perplexity: tuple[float, float] | None
    agreement: Agreement | None
    nbytes_before: int
    nbytes_after: int
    run: Mapping[str, Any]
    seconds: float

    def __str__(self) -> str:
        layers = [row for row in self.report.rows if row.status == "compressed"]
        what = "file" if self.folder is not None else "size, if it were kept,"
        before, after = size_told(self.nbytes_before), size_told(self.nbytes_after)
        lines = [f"compressed {len(layers)} layers, {self.report.covered:.1%} of all weights"]
        lines += self._left_alone()
        lines.append(f"{what} {before} → {after} ({self.nbytes_after / max(1, self.nbytes_before):.0%})")
        if self.perplexity is not None:
            lines.append("perplexity {:.2f} → {:.2f} (held-out text)".format(*self.perplexity))
        if self.agreement is not None:
            lines.append(f"against the dense model: {self.agreement}")
        where = "held out" if any(row.held_out_error is not None for row in layers) else "calibration"
        lines.append(f"largest errors of a layer's output ({where}):")
        lines += [f"  {error:9.3g}  {row.name}" for error, row in worst_layers(self.report.rows)]
        return "\n".join(lines)

    def _left_alone(self) -> list[str]:
        """A line for each reason for which layers were left that nobody chose to leave."""
        reasons: dict[str, list[str]] = {}
        for row in self.report.skipped:
            if row.status != "skipped: not chosen":
                reasons.setdefault(row.status.removeprefix("skipped: "), []).append(row.name)
        for left in self.report.left:
            reasons.setdefault(left.reason, []).append(left.name)
        more = {reason: f" and {len(names) - 1} more" if len(names) > 1 else "" for reason, names in reasons.items()}
        return [f"left as it is: {names[0]}{more[reason]}, {reason}" for reason, names in reasons.items()]


def size_told(nbytes: int) -> str:
    """Return a size in kB, or in MB from one on."""
    return f"{nbytes / 1e6:.1f} MB" if nbytes >= 1e6 else f"{nbytes / 1e3:.1f} kB"


@isolated_run
def compress_model(
    model: str | nn.Module,
    *,
    method: str,
    out: str | os.PathLike | None = None,
    format: str = "mlcomp",
    rest_dtype: str | torch.dtype | None = None,
    data: Data = None,
    held_out: Data = None,
    samples: int | None = None,
    tokens: int | None = None,
    seed: int = 0,
    layers: Layers = None,
    sequential: bool = True,
    on_error: str = "raise",
    tokenizer: Any = None,
    pretrained: bool = True,
    device: str | torch.device | None = None,
    progress: bool = True,
    map: Map = map,
    **options: Any,
) -> CompressedModel:
    """Compress a model, measure it before and after, and keep it in a folder.

    Args:
        model: a name, see :func:`open_model`; or a module, never modified, with batches of its inputs as ``data``.
        method: the name of a compressor of the library, as "gptq" (``mlcomp methods`` lists them).
        out: folder for the model's file and the report (report.csv, .json, .html, .svg, and run.json). A run that was
            killed goes on when the same call is made again: finished layers lie in ``out``/.resume until the end.
        format: "mlcomp", which :func:`mlcomp.layerwise.load` reads, or "compressed-tensors", which transformers and
            vLLM read.
        rest_dtype: "float16", "bfloat16" or "float32", to which the file rounds what is not compressed (embeddings);
            None: the model's own.
        data: what the method sees. None: the reference of Python (texts) or digits (the course's networks for them).
            A path: a text file; a folder of images; an .npy or .safetensors file with inputs as the model takes them,
            samples first. "noise": normal random inputs, where only the shape matters. Or an iterable of batches.
        held_out: the same, to measure on. None: the other part of the reference, or the end of ``data``.
        samples: how many sequences, paragraphs or images the method sees; None: 16, 128, 128.
        tokens: of a sequence, or a paragraph at the most; None: 256, or what the model reads at the most.
        seed: of what is drawn.
        layers: names or patterns of names (``"model.layers.0.*"``), or a predicate (name, module) → bool. None: all
            but the output head of a language model.
        sequential, on_error: see :func:`mlcomp.layerwise.compress`.
        tokenizer: of a module of text, so that ``data`` may be a text file.
        pretrained: False: random weights, to try a method on a network's shape.
        device: where to run; None: where the model is.
        progress: show a progress bar.
        map: by which the method is called for layers that do not wait for each other, such as the ``map`` of a pool
            of processes (:mod:`mlcomp.workers`); which these are, says :func:`mlcomp.layerwise.compress`. A run that
            one has begun goes on with another.
        options: of the method, as values or as words ("2:4"); those of its recipe, where none are given.
    Raises:
        ValueError: an unknown model, method, option or layer, options that do not fit a layer, too few inputs, a
            folder that holds something else or a run with other settings, a ``map`` that does not work. All before
            any layer is compressed.
        ImportError: an optional library that the model needs.
    Guarantee: a run killed at any time and made again gives the same model; a finished folder is never overwritten.
        So does every ``map`` whose workers have as many threads of torch as this process.
    """
    compressor = find_compressor(method)
    bound = bind(compressor, options, seed=seed)
    kept = None if out is None else KeptFolder(out, format, rest_dtype)
    check_map(map, bound)
    opened = _opened(model, tokenizer, pretrained, seed)
    if kept is not None:
        kept.check(opened)
    if device is not None:
        opened.model.to(checked_device(device))
    language_model = opened.kind == LANGUAGE_MODEL
    chosen = choose(opened.model, layers, language_model=language_model)
    inputs = draw_inputs(opened, data, held_out, samples=samples, tokens=tokens, seed=seed)
    log.info("%s: %s", opened.name, inputs.told)
    log.info("measuring the dense model")
    only_tokens = all(isinstance(batch, torch.Tensor) for batch in inputs.measured)
    kind = opened.kind if only_tokens or not language_model else NETWORK
    measure = Measure(opened.model, inputs.measured, kind=kind, valid=inputs.valid)
    nbytes, head = dense_nbytes(opened.model), output_head(opened.model) if language_model else None
    start = time.perf_counter()
    with nullcontext() if kept is None else kept.resuming() as resume:
        result, report = compress(
            opened.model,
            inputs.calibration,
            bound,
            layers=chosen,
            sequential=sequential,
            progress=progress,
            resume=resume,
            held_out=inputs.held_out,
            valid=inputs.valid,
            on_error=on_error,
            errors=inputs.held_out is None,
            inplace=isinstance(model, str),
            map=map,
        )
    seconds = time.perf_counter() - start
    if len(report.skipped) == len(report.rows):
        if kept is not None:
            kept.forget()
        asked = [row for row in report.rows if row.status != "skipped: not chosen"]
        reasons = "; ".join(f"layer {row.name!r}: {row.status.removeprefix('skipped: ')}" for row in asked)
        raise ValueError(f"no layer was compressed: {reasons}")
    report = with_head_named(report, head)
    log.info("measuring the compressed model")
    perplexities, agreed = measure.perplexities(result), measure.agreement(result)
    run = _about(opened, compressor, bound.keywords, inputs, seed) | {
        "perplexity": perplexities,
        "agreement": None if agreed is None else vars(agreed),
        "nbytes_before": nbytes,
        "nbytes_after": nbytes - report.nbytes_before + report.nbytes_after,
        "format": None if kept is None else format,
    }
    if kept is not None:
        log.info("writing %s", kept.path)
        run = kept.finish(opened, result, report, run | {"seconds": round(seconds, 2)})
    return CompressedModel(
        result,
        report,
        None if kept is None else kept.path,
        perplexities,
        agreed,
        run["nbytes_before"],
        run["nbytes_after"],
        run,
        seconds,
    )


def _opened(model: str | nn.Module, tokenizer: Any, pretrained: bool, seed: int) -> OpenedModel:
    if isinstance(model, nn.Module):
        name = type(model).__name__
        kind = kind_of(model) if tokenizer is not None else NETWORK
        return OpenedModel(name, model, tokenizer, kind, longest=longest_text(model))
    log.info("opening %s", model)
    return open_model(model, pretrained=pretrained, seed=seed)


def dense_nbytes(model: nn.Module) -> int:
    """Return the bytes of all that a file of the model holds, dense; what several modules share counts once."""
    tensors = {tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict().values()}
    return sum(tensors.values())


def checked_device(device: str | torch.device) -> torch.device:
    """Return the device; raise ValueError if there is none of that name here."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as problem:
        raise ValueError(f"there is no device {str(device)!r} here: {str(problem).splitlines()[0]}") from problem
    return torch.device(device)


def _about(
    opened: OpenedModel, compressor: Compressor, options: Mapping[str, Any], inputs: Inputs, seed: int
) -> dict[str, Any]:
    shown = {name: options[name] for name in compressor.options if name in options}
    return {
        "model": opened.name,
        "method": compressor.name,
        "options": {name: _word(value) for name, value in shown.items()},
        "data": inputs.told,
        "seed": seed,
        "mlcomp": mlcomp.__version__,
        "torch": torch.__version__,
    }


def _word(value: Any) -> Any:
    """Return an option as JSON holds it, and as it is given on the command line."""
    if isinstance(value, tuple):
        return ":".join(map(str, value))
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value
