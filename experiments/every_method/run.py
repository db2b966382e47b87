"""Compress the subject by every registered method; measure size, quality, time; what is done is not done again."""

import copy
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import append, origin
from experiments.every_method.networks import Compressed
from experiments.every_method.registry import Entry, describe
from mlcomp.compare.every_method import SEED, layer_by_layer, measured
from mlcomp.compare.subject import Subject
from mlcomp.data.committed_table import TABLES, read_table

RESULTS = TABLES / "every_method.csv"
FIELDS = [
    "method", "syllabus", "kind", "setting", "bits_per_weight", "megabytes", "size", "layer_error", "similarity",
    "recall_at_10", "seconds", "hessian_seconds", "date", "commit", "device", "torch", "python", "seed",
]  # fmt: skip


def run(entry: Entry, setting: Mapping[str, Any], subject: Subject) -> dict[str, Any]:
    """Return the row of one method at one setting."""
    start = time.process_time()  # on one thread: the seconds of a machine with nothing else to do
    if entry.whole:
        made = entry.method(subject, **setting)
    else:
        results = layer_by_layer(partial(entry.method, **setting), subject)
        made = Compressed(copy.deepcopy(subject.model), results)
    seconds = time.process_time() - start
    about = origin(seed=SEED, device=torch.device("cpu"))
    row = measured(made.model, made.results, subject, setting.get("pattern")) | {
        "method": entry.name, "syllabus": entry.syllabus, "kind": entry.kind, "setting": describe(setting),
        "seconds": f"{seconds:.2f}",
        "hessian_seconds": "0" if entry.data_free or entry.whole else f"{subject.hessian_seconds:.2f}",
    }  # fmt: skip
    row |= {name: about[name] for name in FIELDS if name in about}
    return {name: row[name] for name in FIELDS}


def done(path: Path) -> set[tuple[str, str]]:
    """Return (method, setting) of each row of the file.

    Raises:
        ValueError: the file has other columns, or is damaged.
    """
    rows = read_table(path) if path.exists() else []
    if rows and list(rows[0]) != FIELDS:
        raise ValueError(f"{path} has the columns {', '.join(rows[0])}, not {', '.join(FIELDS)}: name another --out")
    return {(row["method"], row["setting"]) for row in rows}


def run_all(entries: list[Entry], subject: Callable[[], Subject], path: Path) -> int:
    """Run what the file does not hold yet, append a row after each; return how many were run."""
    have = done(path)
    todo = [(e, s) for e in entries for s in e.settings if (e.name, describe(s)) not in have]
    if not todo:
        return 0
    made = subject()
    shown = ("bits_per_weight", "layer_error", "similarity", "recall_at_10", "seconds")
    for number, (entry, setting) in enumerate(todo, 1):
        row = run(entry, setting, made)
        append([row], path)
        print(f"{number}/{len(todo)} {row['method']}, {row['setting']}:", *(row[k] for k in shown), flush=True)
    return len(todo)
