"""Sparse training of small perceptrons on mnist5k: lottery tickets, sparse from the start, train large then compress.

    python experiments/sparse_mnist.py                     # all three parts; about a quarter of an hour on two cores
    python experiments/sparse_mnist.py --part tickets      # or starts, or large
    python experiments/sparse_mnist.py --part starts --seeds 0   # what is there already is not run again

tickets: LeNet-300-100 from normal Glorot weights, 8 epochs of AdamW. Half of the weights of each layer are removed in
    a round (a quarter of the output layer's). At each density the ticket is trained beside three controls: the mask
    with new weights, the start with zeros shuffled within each layer, and the mask of one-shot pruning.
starts: the same network from Kaiming weights, 9 epochs, at 10, 5 and 2 percent: masks made before training (random,
    Erdős–Rényi, magnitude, SNIP, GraSP at two temperatures) or moved while it lasts (SET, RigL).
large: one hidden layer of h units; h times the number of steps is the same for all. Three quarters of the budget
    train dense, then global magnitude pruning to a number of weights, then a quarter trains what is left. Beside them
    the dense network of that number of weights, with the whole budget.

Each run is a row of ``mlcomp/data/tables/sparse_mnist.csv``: accuracy on the 1000 held-out digits.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks, which is no part of the installed package

from benchmarks.record import run_parts
from mlcomp.compare import train_large
from mlcomp.data import mnist5k
from mlcomp.data.committed_table import TABLES
from mlcomp.layerwise import keep_zeros, layer_weights, with_weights
from mlcomp.metrics import accuracy
from mlcomp.models import lenet_300_100
from mlcomp.prune import (
    erdos_renyi,
    global_magnitude,
    grasp,
    lottery_tickets,
    network_sparsity,
    random_pruning,
    rigl,
    shuffled_zeros,
    snip,
    sparse_evolution,
)
from mlcomp.train import train

RESULTS = TABLES / "sparse_mnist.csv"
SEEDS = (0, 1, 2)
ROUNDS, RATE, EARLY = 7, 0.5, 200
TICKETS = {"epochs": 8, "lr": 1.2e-3, "batch_size": 60, "progress": False}
DENSITIES = (0.1, 0.05, 0.02)
STARTS = {"epochs": 9, "lr": 2e-3, "batch_size": 60, "progress": False}
MOVES = {"every": 25, "fraction": 0.3}
BUDGETS, WIDTHS, BATCH = (6400, 25600), (4, 8, 16, 32, 64, 128, 256), 60


def held(start: nn.Module, seed: int, options: dict) -> tuple[nn.Module, float]:
    """Return a copy of ``start`` trained with its zeros held, and its accuracy after EARLY steps."""
    net, early = with_weights(start, layer_weights(start)), []
    hold = keep_zeros(net)

    def after_step(step: int) -> None:
        hold(step)
        if step == EARLY:
            early.append(accuracy(net, *mnist5k("held_out")))

    train(net, *mnist5k("train"), seed=seed, after_step=after_step, **options)
    if abs(network_sparsity(net) - network_sparsity(start)) > 1e-9:
        raise RuntimeError("zeros came back")
    return net, early[0]


def tickets(seed: int) -> Iterator[tuple[str, float, nn.Module, float]]:
    """Yield (method, density, trained network, early accuracy)."""
    start, other = lenet_300_100(seed=seed), layer_weights(lenet_300_100(seed=100 + seed))
    dense = layer_weights(start)
    found = lottery_tickets(start, *mnist5k("train"), rounds=ROUNDS, rate=RATE, seed=seed, **TICKETS)
    for number, ticket in enumerate(found):
        density = 1 - ticket.sparsity
        yield "ticket", density, *held(ticket.start, seed, TICKETS)
        if not number:
            continue
        masked = layer_weights(ticket.start)
        new = {name: weight.masked_fill(masked[name] == 0, 0) for name, weight in other.items()}
        yield "new weights", density, *held(with_weights(start, new), seed, TICKETS)
        shuffled = shuffled_zeros(dense, masked, seed=seed)
        yield "shuffled mask", density, *held(with_weights(start, shuffled), seed, TICKETS)
        once = {"rate": 1 - (1 - RATE) ** number, "output_rate": 1 - (1 - RATE / 2) ** number}
        one_shot = lottery_tickets(start, *mnist5k("train"), rounds=1, seed=seed, **once, **TICKETS)[1]
        yield "one-shot mask", density, *held(one_shot.start, seed, TICKETS)


def starts(seed: int) -> Iterator[tuple[str, float, nn.Module, float | None]]:
    """Yield (method, density, trained network, None)."""
    start, data = lenet_300_100(start="kaiming", seed=seed), mnist5k("train")
    batch = [t[:100] for t in data]  # ten of each class
    weights = layer_weights(start)
    yield "dense", 1.0, held(start, seed, STARTS)[0], None
    before: dict[str, Callable[..., dict[str, Tensor]]] = {
        "random": partial(random_pruning, weights, seed=seed),
        "Erdős–Rényi": partial(erdos_renyi, weights, seed=seed),
        "magnitude": partial(global_magnitude, weights),
        "SNIP": partial(snip, start, *batch),
        "GraSP": partial(grasp, start, *batch),
        "GraSP, T = 1": partial(grasp, start, *batch, temperature=1.0),
    }
    for density in DENSITIES:
        for name, pruner in before.items():
            yield name, density, held(with_weights(start, pruner(sparsity=1 - density)), seed, STARTS)[0], None
        sparse = with_weights(start, erdos_renyi(weights, sparsity=1 - density, seed=seed))
        yield "SET", density, sparse_evolution(sparse, *data, seed=seed, **MOVES, **STARTS).model, None
        yield "RigL", density, rigl(sparse, *data, seed=seed, **MOVES, **STARTS).model, None


def hidden(width: int, seed: int) -> nn.Sequential:
    """Return an untrained perceptron with one hidden layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))


def large(seed: int) -> Iterator[tuple[str, float, nn.Module, float | None]]:
    """Yield ("budget, width", kept weights, network, None): pruned from a width, or dense of that many weights."""
    weight_flops, options = 2 * 794, {"lr": 2e-3, "batch_size": BATCH, "seed": seed, "retraining_seed": seed + 50}
    networks = {str(width): hidden(width, seed) for width in WIDTHS}
    for budget in BUDGETS:
        enough = {name: net for name, net in networks.items() if budget // int(name) >= 20}
        kept = [794 * width for width in WIDTHS]
        for found in train_large(enough, *mnist5k("train"), budget=weight_flops * budget, kept=kept, **options):
            kind = "pruned" if found.pruned else "dense"
            yield f"{budget}, {found.name}, {kind}", float(found.weights), found.model, None


PARTS = {"tickets": tickets, "starts": starts, "large": large}


def rows(part: str, seed: int) -> Iterator[dict[str, object]]:
    """Yield a row for each network of a part."""
    for method, density, net, early in PARTS[part](seed):
        row: dict[str, object] = {"method": method, "density": round(density, 5)}
        row |= {"accuracy": accuracy(net, *mnist5k("held_out")), "early": "" if early is None else early}
        weights = layer_weights(net).values()
        row["layers"] = " ".join(f"{float((w != 0).double().mean()):.4f}" for w in weights)
        yield row


if __name__ == "__main__":
    run_parts({part: partial(rows, part) for part in PARTS}, dict.fromkeys(PARTS, SEEDS), RESULTS, about=__doc__)
