"""The folder of a compressed model: what lies in it while the run is under way, and afterwards.

``.resume`` holds finished layers until everything else is written; ``run.json``, which is written last, says that the
folder is finished.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mlcomp.checks import check_choice
from mlcomp.deploy.compressed_tensors import export_compressed_tensors
from mlcomp.deploy.opened_model import OpenedModel
from mlcomp.layerwise.report import CompressionReport
from mlcomp.layerwise.report_picture import svg_of
from mlcomp.layerwise.report_tables import write
from mlcomp.layerwise.save import DTYPES, save
from mlcomp.resume import MANIFEST

FORMATS = ("mlcomp", "compressed-tensors")
RUN, RESUME, DRAFT, DONE = "run.json", ".resume", ".writing", ".resume.done"


class KeptFolder:
    """A folder that takes one run.

    Args:
        path: new, empty, or one in which the same run was begun.
        format: one of FORMATS.
        rest_dtype: what is not compressed is rounded to in the file; None: not at all.
    Raises:
        ValueError: the folder is finished, or holds something else; another format or dtype.
    """

    def __init__(self, path: str | os.PathLike, format: str, rest_dtype: str | torch.dtype | None):
        check_choice("format", format, FORMATS)
        self.path, self.format, self.rest_dtype = Path(path), format, _dtype(rest_dtype)
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file: give a new folder")
        shutil.rmtree(self.path / DONE, ignore_errors=True)
        if (self.path / RESUME / MANIFEST).exists():
            return
        if (self.path / RUN).exists():
            about = read_run(self.path)
            raise ValueError(
                f"{self.path} is finished: it holds {about['model']} by {about['method']} {options_told(about)}. "
                "Give another folder, or delete it"
            )
        held = sorted(entry.name for entry in self.path.iterdir()) if self.path.exists() else []
        if held and held != [RESUME]:
            raise ValueError(f"{self.path} holds {', '.join(held[:3])}, which is not of a run: give a new folder")

    @contextmanager
    def resuming(self) -> Iterator[Path]:
        """Yield where finished layers go; an error before the first one leaves nothing."""
        resume = self.path / RESUME
        try:
            yield resume
        except BaseException:
            if resume.exists() and not any(entry.suffix == ".safetensors" for entry in resume.iterdir()):
                self.forget()
            raise

    def forget(self) -> None:
        """Delete what was for resuming, and the folder if it holds nothing else."""
        shutil.rmtree(self.path / RESUME)
        if not any(self.path.iterdir()):
            self.path.rmdir()

    def check(self, opened: OpenedModel) -> None:
        """Raise if the format does not take such a model."""
        if self.format != "mlcomp" and not hasattr(opened.model, "save_pretrained"):
            raise ValueError(
                f"{self.format} takes models of transformers, and {opened.name} is none: use --format mlcomp"
            )

    def finish(
        self, opened: OpenedModel, model: nn.Module, report: CompressionReport, run: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Write everything, delete what was for resuming, and return the run with the size of the file."""
        draft = self.path / DRAFT
        shutil.rmtree(draft, ignore_errors=True)
        try:
            tokenizer = opened.tokenizer if hasattr(opened.tokenizer, "save_pretrained") else None
            if self.format == "mlcomp":
                save(model, report.results, draft, tokenizer=tokenizer, dtype=self.rest_dtype, source=opened.source)
            else:
                export_compressed_tensors(model, report.results, draft, tokenizer=tokenizer, dtype=self.rest_dtype)
        except ValueError as problem:
            raise ValueError(
                f"{problem}. The compressed layers lie in {self.path / RESUME}: the same command with another "
                "--format writes them"
            ) from problem
        nbytes = sum(file.stat().st_size for file in draft.glob("*.safetensors"))
        done = {**run, "nbytes_after": nbytes}
        report.to_csv(draft / "report.csv")
        report.to_json(draft / "report.json")
        report.to_html(draft / "report.html")
        write(draft / "report.svg", svg_of(report))
        write(draft / RUN, json.dumps(done, indent=1, ensure_ascii=False) + "\n")
        # What was half moved by a run that was killed is moved again; run.json comes last.
        for file in sorted(draft.iterdir(), key=lambda file: file.name == RUN):
            os.replace(file, self.path / file.name)
        draft.rmdir()
        os.replace(self.path / RESUME, self.path / DONE)
        shutil.rmtree(self.path / DONE, ignore_errors=True)
        return done


def _dtype(name: str | torch.dtype | None) -> torch.dtype | None:
    dtype = getattr(torch, name, None) if isinstance(name, str) else name
    if name is not None and dtype not in DTYPES:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise ValueError(f"rest_dtype must be one of {known}, got {name!r}")
    return dtype


def read_run(folder: str | os.PathLike) -> dict[str, Any]:
    """Return what the folder's run.json says.

    Raises:
        ValueError: it holds no finished run.
    """
    path = Path(folder) / RUN
    if not path.exists():
        begun = (Path(folder) / RESUME).exists()
        why = "its run is not finished: give its command again" if begun else f"it has no {RUN}"
        raise ValueError(f"{folder} holds no model that mlcomp compress has kept: {why}")
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        run["model"], run["method"], run["options"], run["nbytes_before"], run["nbytes_after"]
    except (ValueError, TypeError, KeyError) as problem:
        raise ValueError(f"{path} is damaged: {problem!r}") from problem
    return run


def options_told(run: Mapping[str, Any]) -> str:
    """Return the options of a run in words."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in run["options"].items())
