"""Compressed byte-level language models beyond their loss: calibration, noise, one flipped byte, other texts.

    python experiments/trustworthiness_text.py               # all; about four minutes on one core
    python experiments/trustworthiness_text.py --part "no data"   # what is there already is not run again

no data, calibrated: the model of width 64. Methods that look at inputs see 16 windows of 128 bytes of the text that
    the models were trained on, drawn by the seed.
widths: all widths, compressed alike: does the order of the dense models stay?

Measured in bits per byte on windows of 128 bytes of Python's reference (which no model was trained on), of source
code, of descriptions of data sets, and of tables of numbers. Noise: each byte of the reference that is read is
replaced by another printable one with probability 0.05, one draw; what has to be predicted stays. Attack: one byte of
each of 32 windows of 64 is replaced, by the model's gradient (8 candidates are tried), by the dense model's
(transferred), and at random: the mean of 9 draws, and the worst of them for each window, which is the same work.

Each model is a row of ``mlcomp/data/tables/trustworthiness_text.csv``.
"""

import argparse
import inspect
import math
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks, which is no part of the installed package

from benchmarks.record import run_parts
from mlcomp.data import python_reference, reference_bytes
from mlcomp.data.committed_table import TABLES
from mlcomp.layerwise import compress
from mlcomp.metrics import expected_calibration_error, hotflip, random_tokens
from mlcomp.models import byte_lm
from mlcomp.modes import evaluating
from mlcomp.prune import magnitude, sparsegpt, wanda
from mlcomp.quant import gptq, rtn

RESULTS = TABLES / "trustworthiness_text.csv"
WINDOW, ATTACKED, DRAWS, CANDIDATES, SHARE = 128, 64, 9, 8, 0.05
PRINTABLE = (torch.arange(256) >= 32) & (torch.arange(256) < 127)
GRID = {"scale_dtype": torch.float16}
Row = dict[str, object]
WITHOUT_DATA: dict[str, Callable] = {
    **{f"RTN, {bits} bits": partial(rtn, bits=bits, **GRID) for bits in (8, 4, 3, 2)},
    **{f"magnitude, {share:.0%}": partial(magnitude, sparsity=share) for share in (0.3, 0.5)},
}
WITH_DATA: dict[str, Callable] = {
    **{f"GPTQ, {bits} bits": partial(gptq, bits=bits, **GRID) for bits in (4, 3, 2)},
    **{f"SparseGPT, {share:.0%}": partial(sparsegpt, sparsity=share) for share in (0.5, 0.7)},
    "Wanda, 50%": partial(wanda, sparsity=0.5),
}


def windows(text: str | Tensor, count: int, length: int) -> Tensor:
    """Return ``count`` windows of ``length`` bytes and the one after, as far apart as the text allows."""
    stream = torch.tensor(list(text.encode())) if isinstance(text, str) else text
    starts = torch.linspace(0, len(stream) - length - 1, count).long()
    return torch.stack([stream[start : start + length + 1] for start in starts])


@cache
def texts() -> dict[str, Tensor]:
    """Return windows of each kind of text."""
    data = [load() for load in (load_iris, load_wine, load_breast_cancer, load_diabetes)]
    numbers = "\n".join(",".join(f"{v:g}" for v in line) for part in data for line in part.data[:40])
    return {
        "reference": windows(reference_bytes(), 64, WINDOW),
        "code": windows(inspect.getsource(argparse), 32, WINDOW),
        "descriptions": windows("\n".join(part.DESCR for part in data), 32, WINDOW),
        "numbers": windows(numbers, 32, WINDOW),
    }


@cache
def calibration(seed: int) -> list[Tensor]:
    """Return one batch of 16 windows of the training text."""
    stream = torch.tensor(list(python_reference("calibration").encode()))
    starts = torch.randint(len(stream) - WINDOW, (16,), generator=torch.Generator().manual_seed(seed))
    return [torch.stack([stream[start : start + WINDOW] for start in starts])]


def logits_of(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the logits of the byte after each."""
    with evaluating(model):
        return torch.cat([model(part) for part in tokens.split(32)])


def losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean loss of each window, in bits per byte."""
    return F.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(1) / math.log(2)


def one_replaced(tokens: Tensor, seed: int) -> Tensor:
    """Return windows with one byte each replaced by another printable one, both drawn."""
    drawn = random_tokens(tokens, share=1.0, allowed=PRINTABLE, seed=seed)
    place = torch.randint(tokens.shape[1], (len(tokens), 1), generator=torch.Generator().manual_seed(100 + seed))
    return tokens.scatter(1, place, drawn.gather(1, place))


def flipped(model: nn.Module, tokens: Tensor, labels: Tensor) -> Tensor:
    """Return the windows with the one byte replaced that hurts the model."""
    options = {"embedding": "embedding", "allowed": PRINTABLE, "losses": losses, "candidates": CANDIDATES}
    return hotflip(model, tokens, labels, **options)


@cache
def dense_side(width: int) -> tuple[Tensor, Tensor]:
    """Return the dense model's predictions on the reference, and the attack on it."""
    model, attacked = byte_lm(width), windows(reference_bytes(), 32, ATTACKED)
    predicted = logits_of(model, texts()["reference"][:, :-1]).argmax(-1)
    return predicted, flipped(model, attacked[:, :-1], attacked[:, 1:])


def measured(model: nn.Module, width: int) -> Row:
    """Return all measures of a model."""
    tokens, labels = texts()["reference"][:, :-1], texts()["reference"][:, 1:]
    logits = logits_of(model, tokens)
    drawn = torch.multinomial(
        logits.flatten(0, 1).softmax(1), 20, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    predicted, transferred = dense_side(width)

    def bits(inputs: Tensor, after: Tensor) -> Tensor:
        return losses(logits_of(model, inputs), after)

    attacked = windows(reference_bytes(), 32, ATTACKED)
    short, following = attacked[:, :-1], attacked[:, 1:]
    random = torch.stack([bits(one_replaced(short, seed), following) for seed in range(DRAWS)])
    row = {
        **{f"bits_{kind}": float(bits(text[:, :-1], text[:, 1:]).mean()) for kind, text in texts().items()},
        "accuracy": float((logits.argmax(-1) == labels).double().mean()),
        "ece": expected_calibration_error(logits, labels),
        "ece_if_true": sum(expected_calibration_error(logits, y.view_as(labels)) for y in drawn.T) / len(drawn.T),
        "changed": float((logits.argmax(-1) != predicted).double().mean()),
        "bits_noise": float(bits(random_tokens(tokens, share=SHARE, allowed=PRINTABLE), labels).mean()),
        "bits_short": float(bits(short, following).mean()),
        "bits_random": float(random.mean()),
        "bits_searched": float(random.max(0).values.mean()),
        "bits_own": float(bits(flipped(model, short, following), following).mean()),
        "bits_transferred": float(bits(transferred, following).mean()),
    }
    return {name: f"{value:.5f}" for name, value in row.items()}


def row(method: str, width: int, seed: int) -> Row:
    """Return the row of a method."""
    model = byte_lm(width)
    if method != "dense":
        data = calibration(seed) if method in WITH_DATA else None
        model, _ = compress(model, data, {**WITHOUT_DATA, **WITH_DATA}[method], progress=False)
    return {"method": method, "width": width} | measured(model, width)


def rows(methods: list[str], seed: int) -> Iterator[Row]:
    """Yield the row of each method at width 64."""
    yield from (row(method, 64, seed) for method in methods)


def widths(seed: int) -> Iterator[Row]:
    """Yield the models of all widths, dense and compressed."""
    for width in (16, 32, 48, 64, 96, 128):
        for method in ("dense", "RTN, 4 bits", "GPTQ, 3 bits", "SparseGPT, 50%"):
            yield row(method, width, seed)


PARTS: dict[str, Callable[[int], Iterator[Row]]] = {
    "no data": partial(rows, ["dense", *WITHOUT_DATA]),
    "calibrated": partial(rows, list(WITH_DATA)),
    "widths": widths,
}

if __name__ == "__main__":
    run_parts(PARTS, {"no data": (0,), "calibrated": range(6), "widths": (0,)}, RESULTS, about=__doc__)
