import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.prune import channel_permutation, kept_magnitude, magnitude, permutation_efficacy
from mlcomp.prune.importance.channel_permutation import SEARCHES
from tests.examples import examples


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def whole(*shape, seed=0):
    """Small whole numbers: all sums are exact, and ties are many."""
    return torch.randint(-9, 10, shape, generator=torch.Generator().manual_seed(seed)).float()


def kept(weight, columns):
    """What one stripe keeps, row by row."""
    return sum(sum(sorted((abs(float(row[c])) for c in columns), reverse=True)[:2]) for row in weight)


def rearrangements(a, b, search):
    """Every pair of stripes of the search, in the library's order: swaps, then exchanges of two for two."""
    for i, j in itertools.product(range(4), repeat=2):
        mine, theirs = list(a), list(b)
        mine[i], theirs[j] = b[j], a[i]
        yield mine, theirs
    pairs = list(itertools.combinations(range(4), 2))
    for u, v in itertools.product(pairs[:3], pairs) if search == "splits" else ():
        mine, theirs = list(a), list(b)
        for i, j in zip(u, v, strict=True):
            mine[i], theirs[j] = b[j], a[i]
        yield mine, theirs


def literal(weight, search):
    """The published search, each rearrangement of each pair of stripes tried on the matrix itself."""
    stripes = [list(range(4 * s, 4 * s + 4)) for s in range(weight.shape[1] // 4)]
    while True:
        found = []
        for a, b in itertools.combinations(range(len(stripes)), 2):
            before = kept(weight, stripes[a]) + kept(weight, stripes[b])
            tried = [(kept(weight, m) + kept(weight, t) - before, m, t)
                     for m, t in rearrangements(stripes[a], stripes[b], search)]  # fmt: skip
            gain, mine, theirs = max(tried, key=lambda entry: entry[0])
            found.append((gain, a, b, mine, theirs))
        used = set()
        for gain, a, b, mine, theirs in sorted(found, key=lambda entry: -entry[0]):
            if gain > 1e-9 and not used & {a, b}:
                stripes[a], stripes[b] = mine, theirs
                used |= {a, b}
        if not used:
            return [column for stripe in stripes for column in stripe]


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("shape", [(5, 8), (8, 16), (6, 20), (1, 12), (9, 4)])
@pytest.mark.parametrize("make", [drawn, whole])
def test_the_tables_find_what_trying_everything_finds(make, shape, search):
    weight = make(*shape)
    before = weight.clone()
    assert channel_permutation(weight, search=search).tolist() == literal(weight, search)
    assert torch.equal(weight, before)


def test_the_34_rearrangements_are_all_other_stripes_of_eight_columns():
    splits = {
        frozenset((frozenset(m), frozenset(t))) for m, t in rearrangements([0, 1, 2, 3], [4, 5, 6, 7], "splits")
    }
    every = {frozenset((frozenset(c), frozenset(range(8)) - set(c))) for c in itertools.combinations(range(8), 4)}
    assert len(splits) == 34 and len(every) == 35
    assert every - splits == {frozenset((frozenset(range(4)), frozenset(range(4, 8))))}


def partitions(columns):
    """All ways to make stripes of the columns."""
    if not columns:
        yield []
        return
    first, rest = columns[0], columns[1:]
    for others in itertools.combinations(rest, 3):
        for more in partitions([c for c in rest if c not in others]):
            yield [[first, *others], *more]


@pytest.mark.parametrize("seed", range(3))
def test_against_the_best_of_all_orders(seed):
    """8 rows and 12 columns: 5775 orders that differ. The searches come close, and never beyond."""
    weight = drawn(8, 12, seed=seed)
    of = {s: kept(weight, s) for s in itertools.combinations(range(12), 4)}
    totals = [sum(of[tuple(stripe)] for stripe in stripes) for stripes in partitions(list(range(12)))]
    assert len(totals) == 5775
    best = max(totals)
    natural = kept_magnitude(weight)
    for search in SEARCHES:
        found = kept_magnitude(weight, channel_permutation(weight, search=search))
        assert 0.99 * best <= found <= best * (1 + 1e-12)  # the searches are greedy: seen 99.5 % and more
        assert found > natural
    assert natural < 0.99 * best


@examples(20)
@given(st.integers(1, 12), st.integers(1, 6), st.sampled_from(SEARCHES), st.integers(0, 2**31))
def test_a_permutation_that_no_rearrangement_improves(rows, stripes, search, seed):
    weight = drawn(rows, 4 * stripes, seed=seed)
    order = channel_permutation(weight, search=search)
    assert sorted(order.tolist()) == list(range(4 * stripes))
    assert kept_magnitude(weight, order) >= kept_magnitude(weight) * (1 - 1e-12)
    parts = order.reshape(-1, 4).tolist()
    for a, b in itertools.combinations(parts, 2):
        now = kept(weight, a) + kept(weight, b)
        for mine, theirs in rearrangements(a, b, search):
            assert kept(weight, mine) + kept(weight, theirs) <= now + 1e-9  # the sum of 96 float64 numbers


def test_kept_magnitude_is_what_two_four_pruning_keeps():
    weight = drawn(7, 24)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    for permutation, matrix in ((None, weight), (order, weight[:, order])):
        want = float(magnitude(matrix, pattern=(2, 4)).double().abs().sum())
        assert kept_magnitude(weight, permutation) == pytest.approx(want, rel=1e-12)


def test_efficacy_by_hand():
    # Natural order: the first stripe holds all that is large, and loses 3 + 4 of it. The best order keeps 10 of 10.
    weight = torch.tensor([[1.0, 2, 3, 4, 0, 0, 0, 0]])
    assert (kept_magnitude(weight), kept_magnitude(weight, torch.tensor([2, 3, 4, 5, 0, 1, 6, 7]))) == (7, 10)
    assert permutation_efficacy(weight, torch.tensor([2, 3, 4, 5, 0, 1, 6, 7])) == 1
    assert permutation_efficacy(weight, torch.tensor([1, 2, 3, 4, 0, 5, 6, 7])) == pytest.approx(1 / 3)
    assert permutation_efficacy(weight, torch.arange(8)) == 0
    assert permutation_efficacy(torch.ones(3, 8), torch.arange(8)) == 1  # nothing to win
    assert permutation_efficacy(weight, channel_permutation(weight)) == 1


@pytest.mark.parametrize(("shape", "want"), [((32, 16), 0.524), ((64, 32), 0.416)])
def test_efficacy_of_swaps_on_random_matrices_is_the_published_programs(shape, want):
    """NVIDIA's own search was run on ten random matrices of each shape (apex, sparsity/permutation_tests)."""
    weights = [drawn(*shape, seed=seed) for seed in range(10)]
    found = {
        s: sum(permutation_efficacy(w, channel_permutation(w, search=s)) for w in weights) / 10 for s in SEARCHES
    }
    assert found["swaps"] == pytest.approx(want, abs=0.03)  # a mean of ten varies by about 0.015
    assert found["splits"] > found["swaps"]  # not on every matrix


def test_zeros_dtypes_and_a_single_stripe():
    assert channel_permutation(torch.zeros(3, 8)).tolist() == list(range(8))
    assert channel_permutation(drawn(3, 4)).tolist() == [0, 1, 2, 3]
    weight = whole(6, 16)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert torch.equal(channel_permutation(weight.to(dtype)), channel_permutation(weight))


def test_bad_input(as_user):
    weight = drawn(4, 8)
    with pytest.raises(ValueError, match="multiple of 4 inputs, got 6"):
        channel_permutation(weight[:, :6])
    with pytest.raises(ValueError, match="search must be one of swaps, splits"):
        channel_permutation(weight, search="best")
    with pytest.raises(ValueError, match="NaN or infinite"):
        kept_magnitude(weight / 0)
    for bad in (torch.zeros(8, dtype=torch.long), torch.arange(4), torch.arange(8)[None]):
        with pytest.raises(ValueError, match=r"permutation must hold each of 0 … 7 once"):
            kept_magnitude(weight, bad)
    with pytest.raises(ValueError, match="permutation must lie in 0 … 7"):
        permutation_efficacy(weight, torch.arange(1, 9))
    with pytest.raises(TypeError, match="permutation must be whole numbers"):
        permutation_efficacy(weight, torch.arange(8.0))
