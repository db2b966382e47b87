r"""Symbols whose labels stand only in the context: a task for learning in context, with its exact solution.

A sequence is "x₁ y₁ x₂ y₂ …": a symbol and its label in turn. Each sequence draws its own labels, one of four for
each of eight symbols, so that nothing about them can be known beforehand. With the probability ε, what is written is
another label, at random.
Tokens 0 to 7 are the symbols, 8 to 11 the labels. The number of shots of a place is how often its
symbol stood before.
After labels $y_1 … y_n$ of a symbol its own label is m with probability $\propto ((1-\epsilon)(L-1)/\epsilon)^{c_m}$,
$c_m$ of the n being m, and the next written one follows: Bayes' rule, which no model can beat.
Beside it a text without labels over the same tokens: token j follows i with probability $\propto 2^{-k}$,
$k = 5i + 7j \bmod 12$, so each token has the same entropy, whatever stood before.
Syllabus: 5.07
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from mlcomp.checks import check_codes, check_interval, check_whole
from mlcomp.context import isolated

SYMBOLS, LABELS = 8, 4
VOCABULARY = SYMBOLS + LABELS
NOISE = 0.1  # ε
_STEPS = 0.5 ** torch.arange(VOCABULARY, dtype=torch.float64) / (2 - 2 * 0.5**VOCABULARY)  # P(k)
CHAIN_ENTROPY = float(-(_STEPS * _STEPS.log()).sum())  # nats a token


@dataclass(frozen=True)
class LabelledSymbols:
    """Sequences, and what is known about their places.

    Attributes:
        tokens: (n, 2·pairs), symbol and label in turn.
        own: (n, pairs), the label that the symbol has in this sequence, 0 to 3; written is another one with ε.
        shots: (n, pairs), how often the symbol stood before.
    """

    tokens: Int64[Tensor, "n twice"]
    own: Int64[Tensor, "n pairs"]
    shots: Int64[Tensor, "n pairs"]


@isolated
def labelled_symbols(
    count: int, *, pairs: int = 12, symbols: int = SYMBOLS, noise: float | int = NOISE, seed: int = 0
) -> LabelledSymbols:
    """Draw sequences, each with its own labels.

    Args:
        count: how many. pairs: of symbol and label in each.
        symbols: how many of the eight a sequence uses; which ones is drawn anew each time.
        noise: ε, below 1.
        seed: the same seed gives the same sequences; the global random state is left alone.
    Raises:
        ValueError: a number out of range.
    """
    check_whole("count", count, 1)
    check_whole("pairs", pairs, 1)
    check_whole("symbols", symbols, 1, SYMBOLS)
    check_interval("noise", noise, "[0, 1)")
    check_whole("seed", seed, 0)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(LABELS, (count, SYMBOLS), generator=generator)
    used = torch.rand(count, SYMBOLS, generator=generator).argsort(1)[:, :symbols]
    x = used.gather(1, torch.randint(symbols, (count, pairs), generator=generator))
    own = labels.gather(1, x)
    wrong = torch.rand(count, pairs, generator=generator) < noise
    other = (own + torch.randint(1, LABELS, (count, pairs), generator=generator)) % LABELS
    tokens = torch.stack((x, SYMBOLS + torch.where(wrong, other, own)), 2).flatten(1)
    return LabelledSymbols(tokens, own, _same(x).sum(2))


@isolated
def bayes_labels(tokens: Int64[Tensor, "n twice"], *, noise: float | int = NOISE) -> Float[Tensor, "n pairs labels"]:
    """Return the probability of each label to be written next, after all that stands before it, float64.

    Args:
        tokens: symbol and label in turn.
        noise: ε of the sequences, in (0, 1).
    Raises:
        ValueError: a token that is no symbol, or no label, where one should stand; noise out of range.
    """
    check_interval("noise", noise, "(0, 1)")
    if tokens.ndim != 2 or tokens.shape[1] % 2 or not tokens.numel():
        raise ValueError(f"tokens must be (n, 2·pairs), at least one pair, got {tuple(tokens.shape)}")
    check_codes("the symbols among the tokens", tokens[:, 0::2], SYMBOLS - 1)
    check_codes("the labels among the tokens − 8", tokens[:, 1::2] - SYMBOLS, LABELS - 1)
    written = F.one_hot(tokens[:, 1::2].long() - SYMBOLS, LABELS).double()
    counts = _same(tokens[:, 0::2]).double() @ written
    one, rest = 1 - noise, noise / (LABELS - 1)
    own = (counts * math.log(one / rest)).softmax(2)
    return own * one + (1 - own) * rest


@isolated
def by_shots(values: Float[Tensor, "n pairs"], shots: Int64[Tensor, "n pairs"], *, most: int) -> Float[Tensor, " k"]:
    """Return the mean of the values at places with 0, 1, … ``most`` shots; NaN where there is no such place.

    Raises:
        ValueError: shapes that differ, ``most`` below 0.
    """
    check_whole("most", most, 0)
    if values.shape != shots.shape:
        raise ValueError(f"values must be {tuple(shots.shape)} like the shots, got {tuple(values.shape)}")
    return torch.stack([values[shots == k].double().mean() for k in range(most + 1)])


@isolated
def chain_text(count: int, length: int, *, seed: int = 0) -> Int64[Tensor, "count length"]:
    """Draw texts of the chain, the first token of each uniformly (which is the chain's own distribution).

    Raises:
        ValueError: a number out of range.
    """
    check_whole("count", count, 1)
    check_whole("length", length, 1)
    check_whole("seed", seed, 0)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (count, length), generator=generator)
    steps = torch.multinomial(_STEPS, count * length, replacement=True, generator=generator).view(count, length)
    for place in range(1, length):
        tokens[:, place] = 7 * (steps[:, place] - 5 * tokens[:, place - 1]) % VOCABULARY  # 7·7 = 49 = 1 mod 12
    return tokens


def _same(symbols: Tensor) -> Tensor:
    """Return which earlier places (last axis) hold the symbol of each place."""
    return (symbols[:, :, None] == symbols[:, None, :]).tril(-1)
