r"""An order of the input channels in which 2:4 pruning keeps more magnitude.

2:4 keeps the two largest weights of each four neighbours. Which columns are neighbours is arbitrary: a layer's inputs
can be put in any order if whatever makes them is put in the same one (:func:`mlcomp.prune.permute_channels`).
A good order spreads the large weights of each row over the blocks.

Notation: W weight (out, inp); a stripe is a block of four columns; K the kept magnitude, the sum over rows and
stripes of the two largest |w|. Two greedy searches, both of pairs of stripes: in each round the best rearrangement of
every pair is found; they are sorted by what they gain and carried out from the top, each stripe once; until none
gains.

| search | rearrangements of a pair of stripes |
|---|---|
| swaps | a column of one for a column of the other: 16 |
| splits | any two stripes made of the eight columns: 34 others, the 16 swaps and 18 exchanges of two for two |

Two tables make it fast. Stripe a with column i replaced by column x keeps hi + max(mid, |w_x|) in a row, with mid and
hi the two largest of the other three: a swap is the sum of two entries. Two columns with values l ≤ h beside two
others l' ≤ h' keep max(l, h') + max(h, l'). Both are sums of maxima over the rows, and
$\sum \max(a, b) = (\sum a + \sum b + \lVert a - b\rVert_1)/2$, so a table is a matrix of L1 distances. A round
changes some stripes, and only their entries are computed anew.
Source: Pool and Yu 2021, "Channel Permutations for N:M Sparsity" (NeurIPS), without its random steps out of local
optima; the tables are ours.   Syllabus: 3.07
"""

from itertools import combinations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mlcomp.checks import check_choice, check_codes, check_weight
from mlcomp.context import isolated

STRIPE = 4
PAIRS = tuple(combinations(range(STRIPE), 2))  # the complement of pair k is pair 5 − k
SEARCHES = ("swaps", "splits")


@isolated
def channel_permutation(weight: Float[Tensor, "out inp"], *, search: str = "splits") -> Int64[Tensor, " inp"]:
    """Return an order of the columns in which 2:4 pruning keeps more magnitude.

    Args:
        weight: (out, inp), any float dtype, inp a multiple of 4; not modified. Of several layers with the same inputs
            pass all rows together; of a convolution ``weight.movedim(1, -1).flatten(0, -2)``.
        search: "swaps", or "splits", which takes about three times as long and mostly finds a slightly better order.
    Returns:
        (inp,) int64: ``weight[:, permutation]`` is the matrix to prune.
    Raises:
        ValueError: inp no multiple of 4, NaN or inf, an unknown search. TypeError: not floating point.
    Guarantee: the kept magnitude is at least that of the order given, and no single rearrangement of the search
        would raise it (by more than 1e-12 of it). Not the best order there is.
    Cost: out·inp² operations for the table of swaps, 2¼ times that for the one of exchanges, and a part of it again
        for each of ten or twenty rounds; some 40 bytes of memory for each pair of columns, 150 for "splits".
    """
    check_choice("search", search, SEARCHES)
    columns = _columns(weight)
    order = torch.arange(len(columns), device=columns.device)
    tables = _Tables(columns, exchanges=search == "splits")
    changed = torch.ones(len(order) // STRIPE, dtype=torch.bool, device=order.device)
    while changed.any():
        tables.update(order, changed)
        gains, option = tables.best(order)
        changed = torch.zeros_like(changed)
        stripes = order.reshape(-1, STRIPE)
        for a, b in _from_the_top(gains, threshold=1e-12 * float(tables.kept.sum())):
            stripes[a], stripes[b] = _rearranged(stripes[a], stripes[b], int(option[a, b]))
            changed[a] = changed[b] = True
    return order


@isolated
def kept_magnitude(weight: Float[Tensor, "out inp"], permutation: Int64[Tensor, " inp"] | None = None) -> float:
    """Return the sum of magnitudes that 2:4 pruning keeps of ``weight[:, permutation]``, summed in float64.

    Raises:
        ValueError: inp no multiple of 4, NaN or inf, ``permutation`` is none. TypeError: not floating point.
    """
    columns = _columns(weight)
    if permutation is not None:
        columns = columns[check_permutation(permutation, len(columns))]
    return float(_top_two(columns.reshape(-1, STRIPE, columns.shape[1])).sum())


@isolated
def permutation_efficacy(weight: Float[Tensor, "out inp"], permutation: Int64[Tensor, " inp"]) -> float:
    r"""Return how much of what 2:4 loses against free choice in each row an order of the columns wins back.

    $(K_{order} - K_{natural}) / (K_{free} - K_{natural})$, $K_{free}$ the magnitude of the larger half of each row.

    Returns:
        1 where every row keeps its larger half, 0 for the natural order, less for a worse one. 1 where the natural
        order leaves nothing to win.
    Raises:
        ValueError, TypeError: as :func:`kept_magnitude`.
    """
    natural, kept = kept_magnitude(weight), kept_magnitude(weight, permutation)
    columns = _columns(weight)
    free = float(columns.topk(len(columns) // 2, dim=0).values.sum())
    # Below rounding of the sums nothing is left to win.
    return (kept - natural) / (free - natural) if free - natural > 1e-12 * free else 1.0


def check_permutation(permutation: Tensor, inp: int) -> Tensor:
    """Return ``permutation``; raise unless it holds each of 0 … inp − 1 once."""
    check_codes("permutation", permutation, inp - 1)
    if permutation.shape != (inp,) or len(permutation.unique()) != inp:
        raise ValueError(f"permutation must hold each of 0 … {inp - 1} once, got shape {tuple(permutation.shape)}")
    return permutation.long()


def _columns(weight: Tensor) -> Float[Tensor, "inp out"]:
    """Return the magnitudes in float64, a row for each column."""
    weight = check_weight(weight)
    if weight.shape[1] % STRIPE:
        raise ValueError(f"weight must have a multiple of {STRIPE} inputs, got {weight.shape[1]}")
    return weight.double().abs().T.contiguous()


def _top_two(stripes: Float[Tensor, "stripes 4 out"]) -> Float[Tensor, " stripes"]:
    return stripes.topk(2, dim=1).values.sum((1, 2))


def _sum_of_maxima(a: Float[Tensor, "n out"], b: Float[Tensor, "m out"]) -> Float[Tensor, "n m"]:
    """Return the sum of max(aᵢ, bⱼ) over the rows of the weight."""
    return (torch.cdist(a, b, p=1.0) + a.sum(1)[:, None] + b.sum(1)[None, :]) / 2


def _from_the_top(gains: Float[Tensor, "stripes stripes"], threshold: float) -> list[tuple[int, int]]:
    """Return disjoint pairs of stripes by falling gain, above the threshold (rounding must not go on for ever)."""
    order = gains.flatten().argsort(descending=True, stable=True)
    order = order[: int((gains > threshold).sum())]
    free, chosen = [True] * len(gains), []
    for a, b in zip((order // len(gains)).tolist(), (order % len(gains)).tolist(), strict=True):
        if free[a] and free[b]:
            free[a] = free[b] = False
            chosen.append((a, b))
    return chosen


def _rearranged(a: Tensor, b: Tensor, option: int) -> tuple[Tensor, Tensor]:
    """Return two stripes after a rearrangement: the 16 swaps first, then the exchanges of two for two."""
    if option < STRIPE**2:
        mine, theirs = [option // STRIPE], [option % STRIPE]
    else:
        u, v = divmod(option - STRIPE**2, len(PAIRS))
        mine, theirs = list(PAIRS[u]), list(PAIRS[v])
    a, b = a.clone(), b.clone()
    a[mine], b[theirs] = b[theirs], a[mine]
    return a, b


class _Tables:
    """What each stripe keeps, and would keep with a column replaced, or with two of its own beside two of another.

    Attributes:
        kept: (stripes,).
        replaced: (inp, inp): the stripe of position p with its column there replaced by column x of the weight.
        mixed: (6·stripes, 6·stripes): the smaller of one pair of columns beside the larger of another, summed; with
            its transpose, what the four keep. None without exchanges.
    """

    def __init__(self, columns: Float[Tensor, "inp out"], *, exchanges: bool) -> None:
        inp, pairs = len(columns), len(columns) // STRIPE * len(PAIRS)
        self.columns = columns
        self.kept = columns.new_zeros(inp // STRIPE)
        self.replaced = columns.new_zeros(inp, inp)
        self.mixed = columns.new_zeros(pairs, pairs) if exchanges else None

    def update(self, order: Int64[Tensor, " inp"], changed: Bool[Tensor, " stripes"]) -> None:
        """Compute the entries of the stripes that changed."""
        every = self.columns[order].reshape(len(self.kept), STRIPE, -1)
        stripes = every[changed]
        self.kept[changed] = _top_two(stripes)
        for i in range(STRIPE):
            others = [k for k in range(STRIPE) if k != i]
            _, mid, hi = stripes[:, others].sort(dim=1).values.unbind(1)
            places = STRIPE * changed.nonzero().flatten() + i
            self.replaced[places] = _sum_of_maxima(mid, self.columns) + hi.sum(1, keepdim=True)
        if self.mixed is not None:
            first, second = (every[:, [pair[k] for pair in PAIRS]].flatten(0, 1) for k in range(2))
            smaller, larger = torch.minimum(first, second), torch.maximum(first, second)
            pairs = changed.repeat_interleave(len(PAIRS))
            self.mixed[pairs] = _sum_of_maxima(smaller[pairs], larger)
            rest = (~pairs).nonzero()
            self.mixed[rest, pairs.nonzero().T] = _sum_of_maxima(smaller[~pairs], larger[pairs])

    def best(self, order: Int64[Tensor, " inp"]) -> tuple[Tensor, Tensor]:
        """Return what the best rearrangement of each pair of stripes a < b gains (−∞ elsewhere), and which it is."""
        count = len(self.kept)
        swapped = self.replaced[:, order]
        swapped = (swapped + swapped.T).reshape(count, STRIPE, count, STRIPE)
        options = [swapped.transpose(1, 2).flatten(2)]
        if self.mixed is not None:
            mixed = (self.mixed + self.mixed.T).reshape(count, len(PAIRS), count, len(PAIRS))
            # Pair u for pair v: a keeps the complement of u beside v, b the complement of v beside u. The complements
            # for each other are the same two stripes, so the pairs u with the first column do.
            exchanged = (mixed.flip(1) + mixed.flip(3))[:, : len(PAIRS) // 2]
            options.append(exchanged.transpose(1, 2).flatten(2))
        best, option = torch.cat(options, dim=2).max(dim=2)
        gains = best - self.kept[:, None] - self.kept[None, :]
        lower = torch.ones(count, count, dtype=torch.bool, device=gains.device).tril()
        return gains.masked_fill(lower, -torch.inf), option
