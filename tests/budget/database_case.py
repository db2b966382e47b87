"""The network and the levels of the tests of the level database."""

import functools

import torch
from torch import nn

from mlcomp.obs import Level, build_database

LEVELS = (
    Level(),
    Level(sparsity=0.3),
    Level(sparsity=0.7),
    Level(pattern=(2, 4)),
    Level(bits=4),
    Level(pattern=(2, 4), bits=4),
    Level(sparsity=0.5, bits=3),
)
build = functools.partial(build_database, progress=False)


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, groups=3, stride=3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 5),
    )


def batches():
    return list(torch.randn(200, 1, 8, 8, generator=torch.Generator().manual_seed(1)).split(50))
