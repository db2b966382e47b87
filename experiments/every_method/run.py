"""Compress the subject by every registered method; measure size, quality, time; what is done is not done again."""

import copy
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import append, origin
from experiments.every_method.networks import Compressed, matrix_layer
from experiments.every_method.registry import Entry, describe
from experiments.every_method.storage import store
from experiments.every_method.subject import Subject
from mlcomp.data.committed_table import TABLES, read_table
from mlcomp.metrics import hessian_error

RESULTS = TABLES / "every_method.csv"
FIELDS = [
    "method", "syllabus", "kind", "setting", "bits_per_weight", "megabytes", "size", "layer_error", "similarity",
    "recall_at_10", "seconds", "hessian_seconds", "date", "commit", "device", "torch", "python", "seed",
]  # fmt: skip
SEED = 0


def run(entry: Entry, setting: Mapping[str, Any], subject: Subject) -> dict[str, Any]:
    """Return the row of one method at one setting."""
    start = time.process_time()  # on one thread: the seconds of a machine with nothing else to do
    made = entry.method(subject, **setting) if entry.whole else layer_by_layer(entry, setting, subject)
    seconds = time.process_time() - start
    nbytes = weights = 0
    errors, written = [], True
    for name, hessian in subject.hessians.items():
        weight = subject.model.get_submodule(name).weight.detach()
        stored = store(made.results[name], setting.get("pattern"))
        errors.append(hessian_error(weight, stored.weight, hessian))
        nbytes, weights = nbytes + stored.nbytes, weights + weight.numel()
        written = written and stored.arrays is not None
        with torch.no_grad():
            matrix_layer(made.model.get_submodule(name)).weight.copy_(stored.weight)
    similarity, recall = subject.quality(made.model)
    about = origin(seed=SEED, device=torch.device("cpu"))
    row = {
        "method": entry.name, "syllabus": entry.syllabus, "kind": entry.kind, "setting": describe(setting),
        "bits_per_weight": f"{8 * nbytes / weights:.4f}", "megabytes": f"{nbytes / 1e6:.3f}",
        "size": "packed" if written else "counted", "layer_error": f"{sum(errors) / len(errors):.6f}",
        "similarity": f"{similarity:.6f}", "recall_at_10": f"{recall:.4f}", "seconds": f"{seconds:.2f}",
        "hessian_seconds": "0" if entry.data_free or entry.whole else f"{subject.hessian_seconds:.2f}",
    }  # fmt: skip
    return row | {name: about[name] for name in FIELDS if name in about}


def layer_by_layer(entry: Entry, setting: Mapping[str, Any], subject: Subject) -> Compressed:
    """Apply a (weight, hessian) method to each layer of the dense network."""
    results = {}
    for name, hessian in subject.hessians.items():
        torch.manual_seed(SEED)  # for a method that draws from the global generator
        weight = subject.model.get_submodule(name).weight.detach()
        results[name] = entry.method(weight.clone(), hessian.clone(), **setting)
    return Compressed(copy.deepcopy(subject.model), results)


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
