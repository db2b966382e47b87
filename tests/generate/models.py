"""A model small enough to write down all that it may say."""

import itertools

import torch
from torch import nn
from torch.nn import functional as F

VOCABULARY, END = 4, 3


class Table(nn.Module):
    """Logits that depend on the last two tokens and the position: a stranger model than any network."""

    def __init__(self, seed=0, size=2.0):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        drawn = torch.randn(12, VOCABULARY, VOCABULARY, VOCABULARY, generator=g, dtype=torch.float64, device="cpu")
        self.table = nn.Parameter(size * drawn)

    def forward(self, tokens):
        before = F.pad(tokens[:, :-1], (1, 0))
        place = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        return self.table[place, before, tokens]


def every_output(length):
    """Return all outputs, each as a tuple of its own tokens."""
    found = []
    for size in range(1, length + 1):
        for body in itertools.product(range(VOCABULARY), repeat=size - 1):
            if END not in body:
                last = range(VOCABULARY) if size == length else [END]
                found += [(*body, token) for token in last]
    return found


def by_hand(model, prompt, output):
    """log p(output | prompt), one token after the other."""
    total, row = 0.0, list(prompt)
    for token in output:
        with torch.no_grad():
            logits = model(torch.tensor([row]))[0, -1]
        total += float(logits[token] - logits.exp().sum().log())
        row.append(token)
    return total


def filled(output, length):
    return [*output, *[END] * (length - len(output))]
