import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.formats import AdditiveCodes
from mlcomp.quant.additive.nearest_codes import nearest_codes
from tests.examples import examples


def points(count=20, books=2, entries=4, dim=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(entries, (count, 1, books), generator=g, dtype=torch.uint8)
    books = torch.randn(books, entries, dim, generator=g, dtype=torch.float64)
    start = AdditiveCodes(codes, books, torch.rand(count, generator=g, dtype=torch.float64) + 0.2)
    root = torch.randn(count, dim, dim, generator=g, dtype=torch.float64)
    return torch.randn(count, dim, generator=g, dtype=torch.float64), start, root @ root.mT


def distance(target, start, codes, metric):
    delta = target - AdditiveCodes(codes[:, None], start.codebooks, start.scale).dequantize()
    return torch.einsum("pd,pde,pe->p", delta, metric.expand(len(target), -1, -1), delta)


@pytest.mark.parametrize("books", [1, 2, 3])
@pytest.mark.parametrize("euclidean", [True, False])
def test_nearest_codes_are_the_best_of_all_with_a_wide_beam(books, euclidean):
    target, start, metric = points(books=books)
    metric = torch.eye(3, dtype=torch.float64)[None] if euclidean else metric
    found = nearest_codes(target, start, metric=None if euclidean else metric, beam=4 ** (books - 1))
    best = (
        torch.stack(
            [
                distance(target, start, torch.tensor(choice, dtype=torch.uint8).expand(len(target), -1), metric)
                for choice in itertools.product(range(4), repeat=books)
            ]
        )
        .min(0)
        .values
    )
    torch.testing.assert_close(distance(target, start, found, metric), best)


def literal_search(target, start, metric, beam, n):
    """The beam search for one point; the second sweep over the codebooks begins with the best of the first."""

    def far(codes):
        delta = target[n] - start.scale[n] * sum(start.codebooks[c, k] for c, k in enumerate(codes))
        return float(delta @ metric[n] @ delta)

    kept = [start.codes[n, 0].tolist()]
    for _ in range(2):
        kept = kept[:1]
        for c in range(len(start.codebooks)):
            tried = [[*codes[:c], k, *codes[c + 1 :]] for codes in kept for k in range(start.codebooks.shape[1])]
            kept = sorted(tried, key=far)[:beam]
    return kept[0]


@pytest.mark.parametrize("beam", [1, 2, 5])
@pytest.mark.parametrize("books", [2, 3])
def test_equals_the_literal_search(books, beam):
    target, start, metric = points(books=books, entries=6)
    found = nearest_codes(target, start, metric=metric, beam=beam).tolist()
    assert found == [literal_search(target, start, metric, beam, n) for n in range(len(target))]


@examples(20)
@given(seed=st.integers(0, 1000), books=st.integers(1, 3), beam=st.integers(1, 5))
def test_nearest_codes_never_go_farther(seed, books, beam):
    target, start, metric = points(books=books, entries=8, seed=seed)
    found = nearest_codes(target, start, metric=metric, beam=beam)
    before, after = (distance(target, start, codes, metric) for codes in (start.codes[:, 0], found))
    assert (after <= before * (1 + 1e-9)).all()


def test_a_point_of_scale_zero_keeps_its_codes():
    target, start, metric = points()
    start = AdditiveCodes(start.codes, start.codebooks, start.scale * 0)
    assert torch.equal(nearest_codes(target, start, metric=metric), start.codes[:, 0])
