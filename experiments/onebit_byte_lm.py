"""OneBit on the course's byte-level language model of width 64: what each part of the recipe brings.

    python experiments/onebit_byte_lm.py                          # all; about eight minutes on one core
    python experiments/onebit_byte_lm.py --part OneBit --seeds 0  # what is there already is not run again

All 16 projections have one bit a weight; embedding and norms stay in floating point and are trained, too. 150 steps
of 8 windows of 128 bytes of Python's reference, drawn by the seed, by AdamW with one peak rate for all, 5e-3: KL to
the teacher plus the squared distance of the normalized states after the four blocks. One part after the other is left
out or exchanged; some are run with the rate 2e-3, too. Rivals at as many steps: the same network trained on the text
alone, without its teacher, and XNOR-Net's layer, whose only values are the mean magnitudes of the rows. What needs no
training: the teacher, and how often a byte follows a byte in the text.

Rows go to ``mlcomp/data/tables/onebit_byte_lm.csv``: cross-entropy [nats a byte] on 128 held-out windows before and
after training, the divergence from the teacher after it, and the share of the weights whose sign has changed.
"""

import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks, which is no part of the installed package

from benchmarks.record import run_parts
from mlcomp.data import python_reference, reference_bytes
from mlcomp.data.committed_table import TABLES
from mlcomp.distill import onebit_student, soft_target_loss
from mlcomp.layerwise import layer_weights, replace_module, with_weights
from mlcomp.layerwise.fit import copy_model
from mlcomp.models import byte_lm
from mlcomp.modes import evaluating
from mlcomp.quant import binarize, prepare_onebit
from mlcomp.quant.aware_training import OneBitLinear
from mlcomp.train import train

RESULTS = TABLES / "onebit_byte_lm.csv"
SEEDS = range(3)
WIDTH, WINDOW, BATCH, STEPS, HELD_OUT = 64, 128, 8, 150, 128
RATE, LOWER = 5e-3, 2e-3
BLOCKS = [f"blocks.{i}" for i in range(4)]

Row = dict[str, object]
teacher = cache(partial(byte_lm, WIDTH))


class RowScaled(nn.Module):
    """XNOR-Net's layer: the signs of a latent weight, times the mean magnitude of its row."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(layer.weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return the product; the gradient reaches the weight through its signs and through the magnitudes."""
        return F.linear(x, binarize(self.weight)) * self.weight.abs().mean(1)


def row_scaled(seed: int) -> nn.Module:
    """Return the teacher with these layers."""
    model = copy_model(teacher())
    for name in layer_weights(model):
        replace_module(model, name, RowScaled(model.get_submodule(name)))
    return model


def randomly_started(seed: int) -> nn.Module:
    """Return the teacher with new projections; the rest is its own."""
    fresh = layer_weights(byte_lm(WIDTH, pretrained=False, seed=seed))
    return prepare_onebit(with_weights(teacher(), fresh))


def prepared(seed: int, **options: object) -> nn.Module:
    """Return the teacher with one-bit layers."""
    return prepare_onebit(teacher(), **options)


METHODS: dict[str, tuple[Callable[[int], nn.Module], dict[str, float] | None]] = {
    "OneBit": (prepared, {}),
    "without norm": (partial(prepared, norm=False), {}),
    "without hidden states": (prepared, {"hidden_weight": 0.0}),
    "without KL": (prepared, {"soft": 0.0}),
    "start at ±0.01": (partial(prepared, start="signs"), {}),
    "random start": (randomly_started, {}),
    "text alone": (prepared, None),
    "row scales": (row_scaled, {}),
}


@cache
def calibration() -> Tensor:
    """Return the windows to train on."""
    text = torch.tensor(list(python_reference("calibration").encode()), dtype=torch.int64)
    return text[: len(text) // WINDOW * WINDOW].view(-1, WINDOW)


def next_byte(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the mean cross-entropy of each byte but the first."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def measured(net: nn.Module) -> tuple[float, float]:
    """Return the cross-entropy and the divergence from the teacher on held-out windows."""
    text = reference_bytes(WINDOW * HELD_OUT).view(-1, WINDOW)
    with evaluating(net), torch.no_grad():
        ours, theirs = (torch.cat([model(part) for part in text.split(32)]) for model in (net, teacher()))
    return float(next_byte(ours, text)), float(soft_target_loss(ours[:, :-1], theirs[:, :-1], temperature=1.0))


def positive(net: nn.Module) -> list[Tensor]:
    """Return for each layer where its latent weight counts as positive."""
    return [m.weight >= 0 for m in net.modules() if isinstance(m, OneBitLinear | RowScaled)]


def method_rows(method: str, rate: float, seed: int) -> Iterator[Row]:
    """Yield the row of a method."""
    make, losses = METHODS[method]
    student = make(seed)
    before, signs = measured(student)[0], positive(student)
    order = torch.randperm(len(calibration()), generator=torch.Generator().manual_seed(seed))[: STEPS * BATCH]
    tokens = calibration()[order]
    run = {"epochs": 1, "batch_size": BATCH, "lr": rate, "seed": seed, "progress": False}
    if losses is None:
        train(student, tokens, tokens, loss=next_byte, **run)
    else:
        student = onebit_student(student, teacher(), tokens, hidden=BLOCKS, **losses, **run).model
    after, divergence = measured(student)
    now = positive(student)
    changed = sum(int((a != b).sum()) for a, b in zip(signs, now, strict=True)) / sum(a.numel() for a in now)
    yield row(method, rate, before, after, divergence, changed)


def row(method: str, rate: float, before: float, after: float, divergence: float, changed: float) -> Row:
    """Return a row of the table."""
    numbers = {"before": before, "after": after, "divergence": divergence, "changed": changed}
    return {"method": method, "rate": rate} | {name: f"{value:.4f}" for name, value in numbers.items()}


def untrained_rows(seed: int) -> Iterator[Row]:
    """Yield the rows of the teacher, and of counts of the bytes, and of the pairs of bytes, one added to each."""
    nats = measured(teacher())[0]
    yield row("teacher", 0, nats, nats, 0.0, 0.0)
    text, held_out = calibration().flatten(), reference_bytes(WINDOW * HELD_OUT).view(-1, WINDOW)
    pairs = torch.ones(256, 256).index_put_((text[:-1], text[1:]), torch.ones(()), accumulate=True)
    for name, counts in (("frequency of bytes", pairs.sum(0).expand(256, 256)), ("pairs of bytes", pairs)):
        log_p = (counts / counts.sum(1, keepdim=True)).log()[held_out]
        with torch.no_grad():
            divergence = float(soft_target_loss(log_p[:, :-1], teacher()(held_out)[:, :-1], temperature=1.0))
        nats = float(next_byte(log_p, held_out))
        yield row(name, 0, nats, nats, divergence, 0.0)


if __name__ == "__main__":
    compared = ("OneBit", "without norm", "start at ±0.01", "row scales")
    parts = {method: partial(method_rows, method, RATE) for method in METHODS}
    parts |= {f"{method}, lower rate": partial(method_rows, method, LOWER) for method in compared}
    seeds = dict.fromkeys(METHODS, SEEDS) | {name: range(1) for name in parts if name not in METHODS}
    run_parts({"untrained": untrained_rows} | parts, {"untrained": range(1)} | seeds, RESULTS, about=__doc__)
