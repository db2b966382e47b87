"""DistilBERT's recipe on a byte-level language model: what the initialization and each of the three losses bring.

    python experiments/distilbert_byte_lm.py                  # all; about an hour on one core
    python experiments/distilbert_byte_lm.py --part "text, triple loss"     # or any other of its parts
    python experiments/distilbert_byte_lm.py --seeds 0        # what is there already is not run again

Teacher: the course's byte-level model of width 48, four blocks. Students: two of its blocks, all else as in it,
trained by 5 · soft targets (T = 2) + 2 · next byte + 1 · (1 − cosine of the states after the last norm), in batches
of 8 sequences of 64 bytes. The first and the last block stay, or 0 and 2, or all weights are new. One loss after the
other is left out, and both of the teacher's at once.

text: all of the prose of Python's reference, 264 kB, on which the teacher was trained, too; once, 516 steps.
little: 3 % of it, drawn by the seed; eight times over the same bytes, 496 steps.
long: all of it, four times, 2064 steps.

Each network is a row of ``mlcomp/data/tables/distilbert_byte_lm.csv``: bits per byte on held-out text and on its own,
the divergence from the teacher [bits] and the mean cosine with its last states, both held out.
"""

import math
import sys
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks, which is no part of the installed package

from benchmarks.record import run_parts
from mlcomp.data import python_reference, reference_bytes
from mlcomp.data.committed_table import TABLES
from mlcomp.distill import distilbert, keep_layers, soft_target_loss
from mlcomp.distill.teaching import look
from mlcomp.models import byte_lm
from mlcomp.modes import evaluating

RESULTS = TABLES / "distilbert_byte_lm.csv"
SEEDS = range(3)
EPOCHS = {"text": 1, "little": 8, "long": 4}
WINDOW, BATCH, SHARE = 64, 8, 0.03

Row = dict[str, object]
Data = tuple[Tensor, Tensor]
teacher = cache(partial(byte_lm, 48))

METHODS: dict[str, tuple[tuple[int, ...] | None, dict[str, float]]] = {
    "teacher": ((0, 1, 2, 3), {}),
    "triple loss": ((0, 3), {}),
    "new weights": (None, {}),
    "without soft targets": ((0, 3), {"soft": 0.0}),
    "without cosine": ((0, 3), {"cosine": 0.0}),
    "without labels": ((0, 3), {"supervised": 0.0}),
    "labels alone": ((0, 3), {"soft": 0.0, "cosine": 0.0}),
    "new weights, labels alone": (None, {"soft": 0.0, "cosine": 0.0}),
    "blocks 0 and 2": ((0, 2), {}),
}


def windows(text: Tensor, stride: int) -> Data:
    """Return sequences of WINDOW bytes, and the byte after each of theirs."""
    cut = text.unfold(0, WINDOW + 1, stride)
    return cut[:, :-1].contiguous(), cut[:, 1:].contiguous()


def student(blocks: tuple[int, ...] | None, seed: int) -> nn.Module:
    """Return these blocks of the teacher with all around them, or a new network of two blocks."""
    if blocks is None:
        return keep_layers(byte_lm(48, pretrained=False, seed=seed), "blocks", (0, 1))
    return keep_layers(teacher(), "blocks", blocks)


def measured(net: nn.Module, own: Data, held_out: Data) -> Row:
    """Return the columns of a network."""
    found: Row = {}
    with evaluating(net), torch.no_grad():
        for name, (inputs, labels) in {"bits": held_out, "own_bits": own}.items():
            logits = torch.cat([net(part) for part in inputs.split(64)])
            found[name] = round(float(F.cross_entropy(logits.flatten(0, 1), labels.flatten())) / math.log(2), 4)
        ours, theirs = (look(model, ("norm",), held_out[0]) for model in (net, teacher()))
    divergence = float(soft_target_loss(ours.logits, theirs.logits, temperature=1.0))
    found["divergence"] = round(divergence / math.log(2), 4)
    found["cosine"] = round(float(F.cosine_similarity(ours.features[0], theirs.features[0], dim=-1).mean()), 4)
    return found


@cache
def data_of(setting: str, seed: int) -> Data:
    """Return the sequences that the students of a setting see."""
    text = torch.tensor(list(python_reference("calibration").encode()), dtype=torch.int64)
    if setting != "little":
        return windows(text, WINDOW)
    size = round(SHARE * len(text))
    start = int(torch.randint(len(text) - size, (), generator=torch.Generator().manual_seed(seed)))
    return windows(text[start : start + size], WINDOW // 4)


def rows(setting: str, method: str, seed: int) -> Iterator[Row]:
    """Yield the row of a student."""
    own, held_out = data_of(setting, seed), windows(reference_bytes(256 * WINDOW + 1), WINDOW)
    blocks, losses = METHODS[method]
    run = {"epochs": EPOCHS[setting], "batch_size": BATCH, "lr": 2e-3, "seed": seed, "progress": False}
    net = student(blocks, seed)
    if method != "teacher":
        net = distilbert(net, teacher(), *own, hidden="norm", **losses, **run).model
    yield {"setting": setting, "method": method, **measured(net, (own[0][:256], own[1][:256]), held_out)}


if __name__ == "__main__":
    parts = {f"{s}, {m}": partial(rows, s, m) for s in EPOCHS for m in METHODS}
    run_parts(parts, dict.fromkeys(parts, SEEDS), RESULTS, about=__doc__)
