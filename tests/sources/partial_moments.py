"""Partial moments of a source, put together from its cells, for comparison with sums and integrals."""

import math

import torch


def moments(source, x):
    """Return (3, n): the integrals of (1, t, t²) f(t) from −∞ to each x."""
    mass, centre, spread = source.cells(torch.stack([torch.full_like(x, -math.inf), x], -1))
    return torch.stack([mass, mass * centre, spread + mass * centre**2])[..., 0]
