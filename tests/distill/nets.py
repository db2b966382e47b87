"""Small students and teachers."""

import torch
from torch import nn

OPTIONS = {"epochs": 3, "lr": 1e-2, "batch_size": 16, "progress": False}


def seeded(make, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def student(seed=0, classes=3):
    """Guided layer: "1", six features."""
    return seeded(lambda: nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, classes)), seed)


def teacher(seed=5):
    """Hint layer: "2", twelve features."""
    return seeded(
        lambda: nn.Sequential(nn.Linear(8, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Dropout(0.5), nn.Linear(12, 3)),
        seed,
    )


def data(n=40):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, 8, generator=g)
    return x, (x @ torch.randn(8, 3, generator=g)).argmax(1)


def equal(a, b):
    return all(torch.equal(u, v) for u, v in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
