"""NetAug, and pruned architectures from scratch, on small images of digits: equal epochs and equal computation.

    python experiments/tiny_and_large_nets.py                # about six minutes on one core
    python experiments/tiny_and_large_nets.py --lengths 4    # what is there already is not run again
    python experiments/tiny_and_large_nets.py --rates half   # accuracy by learning rate, printed

Convolutional networks on the 14×14 pixels of ``mnist5k``. Part "net_aug": one of 2, 4 and 8 channels alone, with
NetAug, and alone for as many epochs as the FLOPs of NetAug pay for. Part "pruning": one of 8, 16 and 32 channels is
trained for E epochs, cut to half of its channels, by the L1 norm of the filters or at random, and tuned for 1, E/4
and E epochs, also at a tenth of the learning rate; the same architecture is trained from scratch for as many, for
the FLOPs of the big network (Scratch-B), and for those of big network and tuning together. The peak learning rate is
the one of 0.01, 0.03 and 0.1 that is best for each kind of network on the last eighth of the training images, after
24 epochs from seed 0; the longest plain training is repeated at 0.03.
Each run is a row of ``mlcomp/data/tables/tiny_and_large_nets.csv``; FLOPs are of the training.
"""

import argparse
import itertools
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks, which is no part of the installed package

from benchmarks.record import append, origin
from mlcomp.cost import model_cost
from mlcomp.data import mnist5k
from mlcomp.data.committed_table import TABLES, committed_table
from mlcomp.metrics import accuracy
from mlcomp.prune import (
    TrainingBill,
    dependency_groups,
    filter_norms,
    least_channels,
    reinitialize,
    remove_channels,
    scratch_epochs,
    training_bill,
)
from mlcomp.train import net_aug, train

RESULTS = TABLES / "tiny_and_large_nets.csv"
TINY, BIG = (2, 4, 8), (8, 16, 32)
MULTIPLES = (1, 2, 3)
RATES, RATE = (1e-2, 3e-2, 1e-1), 1e-1
LENGTHS = {"net_aug": (4, 16, 48), "pruning": (4, 16)}
SEEDS = 3
OPTIONS: dict[str, Any] = {"batch_size": 128, "progress": False}
Digits = tuple[Tensor, Tensor]


def build(widths: tuple[int, ...]) -> nn.Module:
    """Return three convolutions with BatchNorm, and a linear layer on the mean of what they found."""
    layers: list[nn.Module] = []
    for inp, out, stride in zip((1, *widths), widths, (2, 2, 1), strict=False):
        layers += [nn.Conv2d(inp, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))


@cache
def images(split: str) -> Digits:
    """Return the digits in 14×14 pixels."""
    x, y = mnist5k(split)
    return F.avg_pool2d(x, 2), y


def started(widths: tuple[int, ...], seed: int) -> nn.Module:
    """Return a network with the random weights of this seed."""
    return reinitialize(build(widths), seed=seed)


def trained(net: nn.Module, epochs: int, lr: float, seed: int, data: Digits | None = None) -> nn.Module:
    """Train in place, and return the network."""
    train(net, *(data or images("train")), epochs=epochs, lr=lr, seed=seed, **OPTIONS)
    return net


def augmented(epochs: int, lr: float, seed: int, data: Digits | None = None, alpha: float = 1.0) -> nn.Module:
    """Return the tiny network, trained with NetAug."""
    settings = {"widths": TINY, "multiples": MULTIPLES, "alpha": alpha, "epochs": epochs, "lr": lr, "seed": seed}
    return net_aug(build, *(data or images("train")), **settings, **OPTIONS).model


def augmented_bill(epochs: int) -> TrainingBill:
    """Return the FLOPs of a training with NetAug: the mean over the widths that are drawn."""
    x, y = images("train")
    widths = [tuple(m * w for m, w in zip(ms, TINY, strict=True)) for ms in itertools.product(MULTIPLES, repeat=3)]
    wide = sum(model_cost(build(w), x[:1]).flops_dense for w in widths)
    own = training_bill(build(TINY), x[:1], samples=len(y), epochs=epochs).flops
    flops = own + 3 * wide * len(y) * epochs // len(widths)
    return TrainingBill(epochs, flops, flops)


def print_rates(kind: str) -> None:
    """Print the accuracy on the last eighth of the training images by learning rate."""
    x, y = images("train")
    cut = len(x) * 7 // 8
    data, found = (x[:cut], y[:cut]), {}
    widths = {"tiny": TINY, "half": tuple(w // 2 for w in BIG), "big": BIG}
    for lr in RATES:
        net = augmented(24, lr, 0, data) if kind == "net_aug" else trained(started(widths[kind], 0), 24, lr, 0, data)
        found[lr] = accuracy(net, x[cut:], y[cut:])
    print(kind, found, flush=True)


class Record:
    """The rows that are there, and new ones."""

    def __init__(self) -> None:
        rows = committed_table(RESULTS.stem) if RESULTS.exists() else []
        self.have = {(r["part"], r["method"], int(r["length"]), int(r["seed"])) for r in rows}

    def missing(self, part: str, method: str, length: int, seed: int) -> bool:
        """Return whether this run is still to do."""
        return (part, method, length, seed) not in self.have

    def add(self, part: str, method: str, length: int, seed: int, lr: float, bill: TrainingBill, make: Any) -> None:
        """Run ``make`` if it is missing, and append what it gave."""
        if not self.missing(part, method, length, seed):
            return
        began = time.process_time()
        net = make()
        row = {"part": part, "method": method, "length": length, "epochs": bill.epochs, "lr": lr}
        row |= {"mflops": round(bill.flops / 1e6), "mflops_with_big": round(bill.flops_with_big / 1e6)}
        row |= {s: round(accuracy(net, *images(s)), 5) for s in ("held_out", "train")}
        row |= {"seconds": round(time.process_time() - began, 1)} | origin(seed=seed)
        print(row, flush=True)
        append([row], RESULTS)


def run_net_aug(record: Record, length: int, seed: int) -> None:
    """Run the tiny network alone and with NetAug."""
    x, y = images("train")

    def plain(epochs: int) -> TrainingBill:
        return training_bill(build(TINY), x[:1], samples=len(y), epochs=epochs)

    bill = augmented_bill(length)
    record.add("net_aug", "NetAug", length, seed, RATE, bill, lambda: augmented(length, RATE, seed))
    same = bill.flops // plain(1).flops
    methods = {"plain": (length, RATE), "plain, equal FLOPs": (same, RATE)}
    if length == max(LENGTHS["net_aug"]):  # the rate was chosen for a shorter training
        methods["plain, equal FLOPs, lower rate"] = same, RATES[-2]
    for method, (epochs, lr) in methods.items():
        # α = 0 is plain training from the start that NetAug has, which its test shows.
        net = lambda epochs=epochs, lr=lr: augmented_start(epochs, lr, seed)  # noqa: E731
        record.add("net_aug", method, length, seed, lr, plain(epochs), net)


def augmented_start(epochs: int, lr: float, seed: int) -> nn.Module:
    """Train the tiny network alone, from the leading blocks of the wide one with which NetAug starts."""
    tiny, wide = build(TINY), started(tuple(max(MULTIPLES) * w for w in TINY), seed)
    for name, value in tiny.named_parameters():
        value.data.copy_(wide.get_parameter(name).detach()[tuple(map(slice, value.shape))])
    return trained(tiny, epochs, lr, seed)


def run_pruning(record: Record, length: int, seed: int) -> None:
    """Train big, cut, tune; and train the small architecture from scratch."""
    x, y = images("train")
    big = trained(started(BIG, seed), length, RATE, seed)
    groups = dependency_groups(big, x[:1])
    generator = torch.Generator().manual_seed(seed)
    norms = filter_norms(big, groups)
    chosen = {"L1": norms, "random": {g: torch.rand(g.channels, generator=generator) for g in groups}}
    pruned = {name: remove_channels(big, least_channels(scores, share=0.5)) for name, scores in chosen.items()}
    half, sample = pruned["L1"], {"sample": x[:1], "samples": len(y)}

    def add(method: str, lr: float, epochs: int, make: Any, *, tuned: bool = True) -> None:
        before: dict[str, Any] = {"big": big, "big_epochs": length} if tuned else {}
        record.add("pruning", method, length, seed, lr, training_bill(half, epochs=epochs, **before, **sample), make)

    record.add("pruning", "big", length, seed, RATE, training_bill(big, epochs=length, **sample), lambda: big)
    short = {"1": 1, "E/4": length // 4, "E": length}
    for name, net in pruned.items():
        add(f"{name}, not tuned", 0.0, 0, lambda net=net: net)
        for words, epochs in short.items():
            add(f"{name}, tuned {words}", RATE, epochs, lambda n=net, e=epochs: tuned(n, e, RATE, seed))
            if name == "L1":
                low = lambda n=net, e=epochs: tuned(n, e, RATE / 10, seed)  # noqa: E731
                add(f"{name}, tuned {words}, lr/10", RATE / 10, epochs, low)
    same = scratch_epochs(big, half, x[:1], epochs=length)
    for words, epochs in (short | {"B": same, "B + E": same + length}).items():
        start = lambda e=epochs: trained(reinitialize(half, seed=seed), e, RATE, seed)  # noqa: E731
        add(f"scratch {words}", RATE, epochs, start, tuned=False)


def tuned(net: nn.Module, epochs: int, lr: float, seed: int) -> nn.Module:
    """Return a trained copy; the order of the images is not that of the big network's training."""
    return trained(remove_channels(net, {}), epochs, lr, seed + 1000)


def main(argv: list[str] | None = None) -> None:
    """Run what is asked for and not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    lengths = sorted({n for ns in LENGTHS.values() for n in ns})
    parser.add_argument("--lengths", nargs="+", type=int, choices=lengths, default=lengths)
    parser.add_argument("--rates", nargs="+", choices=["net_aug", "tiny", "half", "big"])
    options = parser.parse_args(argv)
    if options.rates:
        for kind in options.rates:
            print_rates(kind)
        return
    record = Record()
    for length in options.lengths:
        for seed in range(SEEDS):
            if length in LENGTHS["net_aug"]:
                run_net_aug(record, length, seed)
            # Its last run is missing: then the big network is needed.
            if length in LENGTHS["pruning"] and record.missing("pruning", "scratch B + E", length, seed):
                run_pruning(record, length, seed)


if __name__ == "__main__":
    main()
