"""Train the network that learns in context; write its weights and what was measured.

    python experiments/train_in_context_teacher.py     # a minute and a half on one core

First on short sequences, two symbols and four pairs: there the second half of a sequence repeats what the first half
holds, and the attention that looks for the same symbol forms soon. Then on whole ones, beside texts of the chain.
Weights go to ``mlcomp/models/weights/``, in float16, numbers (measured with these) to
``mlcomp/data/tables/in_context_teacher.json``. Interrupted, it goes on from the last epoch (checkpoints in the
cache); ``seconds`` then counts the last part only.
"""

import json
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks, which is no part of the installed package

from benchmarks.record import origin
from mlcomp.assets import cache_dir
from mlcomp.data.committed_table import TABLES, write_results
from mlcomp.data.labelled_symbols import (
    CHAIN_ENTROPY,
    SYMBOLS,
    bayes_labels,
    by_shots,
    chain_text,
    labelled_symbols,
)
from mlcomp.models import in_context_teacher
from mlcomp.models.pretrained import WEIGHTS
from mlcomp.resume import replacing
from mlcomp.train import train

NAME = "in_context_teacher"
RESULTS = TABLES / f"{NAME}.json"
IGNORED = -100  # labels that the loss leaves out
STAGES = {
    "short": {"sequences": 38400, "pairs": 4, "symbols": 2, "texts": 0, "epochs": 1, "lr": 2e-3},
    "whole": {"sequences": 16000, "pairs": 12, "symbols": SYMBOLS, "texts": 8000, "epochs": 6, "lr": 2e-3},
}
MOST = 4


def data(stage: dict, *, seed: int) -> tuple[Tensor, Tensor]:
    """Return rows without their last token, and the next tokens: of sequences the labels only."""
    rows = labelled_symbols(stage["sequences"], pairs=stage["pairs"], symbols=stage["symbols"], seed=seed).tokens
    labels = rows.clone()
    labels[:, 0::2] = IGNORED
    if stage["texts"]:
        texts = chain_text(stage["texts"], 2 * stage["pairs"], seed=seed)
        rows, labels = torch.cat((rows, texts)), torch.cat((labels, texts))
    return rows[:, :-1], labels[:, 1:]


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of the tokens that count."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


def measured(net: nn.Module, *, seed: int, count: int = 4000) -> dict[str, object]:
    """Return the accuracy by the number of shots, beside Bayes' rule, and the loss on text, on new data."""
    new = labelled_symbols(count, seed=seed)
    with torch.no_grad():
        logits = net(new.tokens[:, :-1])[:, 0::2, SYMBOLS:]
        text = chain_text(count, 24, seed=seed)
        nll = loss(net(text[:, :-1]), text[:, 1:])
    rule = bayes_labels(new.tokens)
    found = {}
    for name, scores in (("accuracy", logits), ("bayes", rule)):
        found[name] = [
            round(float(x), 4) for x in by_shots((scores.argmax(2) == new.own).double(), new.shots, most=MOST)
        ]
    return found | {"text_nll": round(float(nll), 4), "chain_entropy": round(CHAIN_ENTROPY, 4)}


def main() -> None:
    """Train, save, measure."""
    net = in_context_teacher(pretrained=False, seed=0)
    start = time.perf_counter()
    for number, (name, stage) in enumerate(STAGES.items()):
        inputs, labels = data(stage, seed=number)
        checkpoint = cache_dir() / "checkpoints" / f"{NAME}_{name}.pt"
        recipe = {"epochs": stage["epochs"], "lr": stage["lr"], "batch_size": 96 if name == "short" else 64}
        train(net, inputs, labels, loss=loss, seed=0, checkpoint=checkpoint, progress=False, **recipe)
        print(name, measured(net, seed=1000, count=1000), f"{time.perf_counter() - start:.0f} s", flush=True)
    seconds = time.perf_counter() - start
    path = WEIGHTS / f"{NAME}.safetensors"
    with replacing(path) as draft:
        save_file({k: w.half() for k, w in net.state_dict().items()}, draft)
    net.load_state_dict(load_file(path))
    results = {
        "recipe": STAGES,
        "parameters": sum(p.numel() for p in net.parameters()),
        "file_bytes": path.stat().st_size,
        **measured(net, seed=1001),
        "seconds": round(seconds, 1),
        "origin": origin(seed=0),
    }
    write_results(results, RESULTS)
    print(json.dumps(results, indent=1))
    for name in STAGES:
        (cache_dir() / "checkpoints" / f"{NAME}_{name}.pt").unlink(missing_ok=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
