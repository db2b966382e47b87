"""A small network with additive codes, and one layer as a network, for the tests of block tuning and PV-tuning."""

import functools

import torch
from torch import nn

from mlcomp.data import make_layer
from mlcomp.obs import layer_hessian
from mlcomp.quant import aqlm, residual_kmeans


@functools.cache
def network(seed=0, code_bits=4):
    """Return (block, inputs, held out, codes), not to be changed: linear, norm, linear; correlated inputs."""
    first, x, held_out = make_layer(32, 16, 200, seed=seed)
    second, _, _ = make_layer(8, 32, 1, seed=seed + 1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        block = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 8)).eval()
    with torch.no_grad():
        block[0].weight.copy_(first)
        block[3].weight.copy_(second)
        hidden = torch.relu(block[1](block[0](x.T))).T
    options = {"dim": 4, "books": 1, "code_bits": code_bits}
    layers = {"0": aqlm(first, layer_hessian(x), **options), "3": aqlm(second, layer_hessian(hidden), **options)}
    return block, x.T.contiguous(), held_out.T.contiguous(), layers


def one_layer(out=48, inp=32, seed=0, books=1, code_bits=5):
    """Return (layer, root of H as inputs, codes by k-means, H): the block loss is the layer-wise loss of H."""
    weight, x, _ = make_layer(out, inp, 400, seed=seed)
    hessian = layer_hessian(x)
    layer = nn.Linear(inp, out, bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return (
        layer,
        torch.linalg.cholesky(hessian).T.contiguous(),
        residual_kmeans(weight, dim=4, books=books, code_bits=code_bits),
        hessian,
    )


def error(block, other, x):
    """Return ‖z − ẑ‖²/‖z‖²."""
    with torch.no_grad():
        z = block(x)
        return float((other(x) - z).square().sum() / z.square().sum())
