"""Small networks with one of everything that ties channels together, and a model with channels at zero."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from mlcomp.modes import evaluating
from mlcomp.prune import Group
from mlcomp.prune.structured.weight_axes import find_axes


def seeded(make, seed: int = 0):
    """Return what ``make`` makes, in float64 and eval mode, with norms that are no identity."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make().double().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm | nn.RMSNorm | nn.GroupNorm):
                for key in ("weight", "bias", "running_mean", "running_var"):
                    entries = getattr(module, key, None)
                    if entries is not None:
                        entries.data.copy_(torch.rand(entries.shape) + 0.5)
    return model


def run(model: nn.Module, batch):
    with evaluating(model):
        out = model(**batch) if isinstance(batch, dict) else model(batch)
    return getattr(out, "logits", getattr(out, "last_hidden_state", out))


def with_zeros(model: nn.Module, removed: dict[Group, list[int]]) -> nn.Module:
    """Return a copy with all weights of these channels at zero, position by position."""
    model = copy.deepcopy(model)
    axes = {(axis.name, axis.axis): axis for axis in find_axes(model)}
    for group, numbers in removed.items():
        for member in group.members:
            for module, key, dim in axes[member.name, member.axis].cuts:
                tensor = getattr(module, key).data
                for position in (p for n in numbers for p in member.indices[n]):
                    if dim is None:
                        per = tensor.shape[1]
                        rows = len(tensor) // module.groups
                        start = position // per * rows
                        tensor[start : start + rows, position % per] = 0
                    elif not key.startswith("running"):
                        tensor.select(dim, position).zero_()
    return model


class Joined(nn.Module):
    """A shortcut, a gated product, a concatenation, a chunk, a flatten: each with norms."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.left = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.right = nn.Conv2d(6, 4, 1)
        self.gate = nn.Conv2d(10, 5, 1)
        self.value = nn.Conv2d(10, 5, 1)
        self.depth = nn.Conv2d(5, 10, 3, padding=1, groups=5)
        self.glu = nn.Conv2d(10, 8, 1)
        self.line = nn.Linear(4 * 9, 7)
        self.norm = nn.RMSNorm(7, eps=1e-3)
        self.head = nn.Linear(7, 3)

    def forward(self, x):
        x = F.relu(self.bn(self.stem(x)))
        x = torch.cat([x + self.left(x), self.right(x)], 1)
        x = self.depth(torch.sigmoid(self.gate(x)) * self.value(x))
        a, b = self.glu(x).chunk(2, 1)
        x = F.avg_pool2d(a * torch.tanh(b), 2).flatten(1)
        return self.head(self.norm(self.line(x)))


class Grouped(nn.Module):
    """Grouped convolutions, forwards and transposed, between free ones."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 6, 1)
        self.grouped = nn.Conv2d(6, 9, 3, groups=3)
        self.middle = nn.Conv2d(9, 4, 1)
        self.turned = nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2)
        self.deep = nn.ConvTranspose2d(6, 12, 2, groups=6)
        self.plain = nn.ConvTranspose2d(12, 5, 2)
        self.last = nn.Conv2d(5, 2, 1)

    def forward(self, x):
        x = self.middle(torch.tanh(self.grouped(torch.tanh(self.first(x)))))
        x = self.deep(torch.tanh(self.turned(torch.tanh(x))))
        return self.last(torch.tanh(self.plain(torch.tanh(x)))).mean((2, 3))


class Attention(nn.Module):
    """Heads, two for each key-value head, from one matrix, in a residual stream; the output matrix is not tied."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 12)
        self.place = nn.Parameter(torch.randn(1, 5, 12))
        self.norm = nn.RMSNorm(12, eps=1e-2)
        self.qkv = nn.Linear(12, 4 * 3 + 2 * 2 * 3)
        self.scale = nn.Parameter(torch.rand(3))
        self.out = nn.Linear(12, 12)
        self.head = nn.Linear(12, 11, bias=False)
        self.sizes = (12, 6, 6)

    def forward(self, tokens):
        x = self.embed(tokens) + self.place
        y = self.qkv(self.norm(x))
        share = y.shape[-1] // 4
        q, k, v = (part.unflatten(-1, (-1, 3)).transpose(1, 2) for part in y.split([2 * share, share, share], dim=-1))
        k, v = (part.repeat_interleave(2, 1) for part in (k * self.scale, v))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head(x)
