"""A small sparse network and a problem, for the tests of training with connections that move."""

import torch
from torch import nn

from mlcomp.layerwise import with_weights
from mlcomp.prune import erdos_renyi, layer_weights


def network(seed=0, sparsity=0.6):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
    pruned = erdos_renyi(layer_weights(model), sparsity=sparsity)
    return with_weights(model, {**pruned, "4": model[4].weight.detach()})  # the output layer is dense


def problem(n=64):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, 8, generator=g)
    return x, (x @ torch.randn(8, 3, generator=g)).argmax(1)


OPTIONS = {"epochs": 5, "lr": 1e-2, "batch_size": 16, "progress": False}  # 20 steps


def masks(model):
    return {name: weight != 0 for name, weight in layer_weights(model).items()}


def states_equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
