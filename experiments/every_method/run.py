"""Compress one model by every registered method, and measure size, quality and time; what is done is not done again.

The model is MiniLM, a sentence encoder in float32. The 36 linear layers of its encoder are compressed, each with the
Hessian of the inputs that the *dense* model gives it, on 128 sentences of the Python reference. Quality is measured
on 128 other sentences: the mean cosine with the dense model's vectors, and how many of the ten sentences nearest to
each sentence stay among its ten nearest.
"""

import copy
import csv
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from benchmarks.record import machine
from experiments.every_method.registry import Entry, describe
from experiments.every_method.storage import store
from mlcomp.data import python_sentences
from mlcomp.data.committed_table import TABLES
from mlcomp.layerwise import collect_hessians
from mlcomp.metrics import embedding_similarity, hessian_error
from mlcomp.models import embed, minilm

RESULTS = TABLES / "every_method.csv"
FIELDS = [
    "method", "syllabus", "kind", "setting", "bits_per_weight", "megabytes", "size", "layer_error", "similarity",
    "recall_at_10", "seconds", "hessian_seconds", "date", "commit", "device", "torch", "python",
]  # fmt: skip
SENTENCES = 128
SEED = 0


@dataclass(frozen=True)
class Subject:
    """The model, what the methods see of it, and how good a compressed copy is.

    Attributes:
        model: not modified.
        hessians: name of each layer to compress → (inp, inp).
        hessian_seconds: what it took to collect them.
        quality: compressed model → (similarity, recall at 10).
    """

    model: nn.Module
    hessians: Mapping[str, Float[Tensor, "inp inp"]]
    hessian_seconds: float
    quality: Callable[[nn.Module], tuple[float, float]]


def minilm_subject(sentences: int = SENTENCES) -> Subject:
    """Return MiniLM with its Hessians and the quality measure described above."""
    model, tokenizer = minilm()
    names = [name for name, m in model.named_modules() if name.startswith("encoder.") and isinstance(m, nn.Linear)]
    text = python_sentences("calibration", count=sentences)
    start = time.perf_counter()
    batches = [
        dict(tokenizer(text[i : i + 32], padding=True, truncation=True, max_length=256, return_tensors="pt"))
        for i in range(0, sentences, 32)
    ]
    hessians = collect_hessians(model, batches, layers=names, valid="attention_mask")
    seconds = time.perf_counter() - start
    held_out = python_sentences("held_out", count=sentences)
    reference = embed(model, tokenizer, held_out)

    def quality(candidate: nn.Module) -> tuple[float, float]:
        vectors = embed(candidate, tokenizer, held_out)
        return embedding_similarity(reference, vectors), recall_of_neighbours(reference, vectors)

    return Subject(model, hessians, seconds, quality)


def recall_of_neighbours(
    reference: Float[Tensor, "n dim"], vectors: Float[Tensor, "n dim"], count: int = 10
) -> float:
    """Return the share of each vector's ``count`` nearest by cosine (itself left out) that stay so near."""
    nearest = []
    for x in (reference, vectors):
        unit = nn.functional.normalize(x.double(), dim=1)
        cosine = (unit @ unit.T).fill_diagonal_(-2)
        nearest.append(torch.zeros_like(cosine).scatter_(1, cosine.topk(count, dim=1).indices, 1))
    return float((nearest[0] * nearest[1]).sum() / (count * len(reference)))


def run(entry: Entry, setting: Mapping[str, Any], subject: Subject) -> dict[str, Any]:
    """Return the row of one method at one setting."""
    candidate = copy.deepcopy(subject.model)
    nbytes = weights = 0
    errors, seconds, written = [], 0.0, True
    for name, hessian in subject.hessians.items():
        layer = candidate.get_submodule(name)
        weight = layer.weight.detach()
        torch.manual_seed(SEED)  # for a method that draws from the global generator
        start = time.perf_counter()
        result = entry.method(weight.clone(), hessian.clone(), **setting)
        seconds += time.perf_counter() - start
        stored = store(result, setting.get("pattern"))
        errors.append(hessian_error(weight, stored.weight, hessian))
        nbytes, weights = nbytes + stored.nbytes, weights + weight.numel()
        written = written and stored.arrays is not None
        with torch.no_grad():
            layer.weight.copy_(stored.weight)
    similarity, recall = subject.quality(candidate)
    where = machine(torch.device("cpu"))
    return {
        "method": entry.name, "syllabus": entry.syllabus, "kind": entry.kind, "setting": describe(setting),
        "bits_per_weight": f"{8 * nbytes / weights:.4f}", "megabytes": f"{nbytes / 1e6:.3f}",
        "size": "packed" if written else "counted", "layer_error": f"{sum(errors) / len(errors):.6f}",
        "similarity": f"{similarity:.6f}", "recall_at_10": f"{recall:.4f}", "seconds": f"{seconds:.2f}",
        "hessian_seconds": "0" if entry.data_free else f"{subject.hessian_seconds:.2f}", "date": where["date"],
        "commit": where["commit"], "device": where["device"], "torch": where["torch"],
        "python": platform.python_version(),
    }  # fmt: skip


def done(path: Path) -> set[tuple[str, str]]:
    """Return (method, setting) of each row of the file."""
    if not path.exists():
        return set()
    with path.open(newline="", encoding="utf-8") as file:
        return {(row["method"], row["setting"]) for row in csv.DictReader(file)}


def run_all(entries: list[Entry], subject: Callable[[], Subject], path: Path) -> int:
    """Run what the file does not hold yet, append a row after each; return how many were run."""
    have = done(path)
    todo = [(e, s) for e in entries for s in e.settings if (e.name, describe(s)) not in have]
    if not todo:
        return 0
    made = subject()
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if new:
            writer.writeheader()
        for number, (entry, setting) in enumerate(todo, 1):
            row = run(entry, setting, made)
            writer.writerow(row)
            file.flush()
            shown = ("bits_per_weight", "layer_error", "similarity", "recall_at_10", "seconds")
            print(f"{number}/{len(todo)} {row['method']}, {row['setting']}:", *(row[k] for k in shown), flush=True)
    return len(todo)
