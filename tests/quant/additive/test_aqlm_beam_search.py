import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.data import make_layer
from mlcomp.formats import AdditiveCodes
from mlcomp.obs import layer_hessian
from mlcomp.quant.additive.aqlm_beam_search import beam_search, row_loss
from tests.examples import examples


def problem(out=5, groups=3, books=2, entries=4, dim=2, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    weight, x, _ = make_layer(out, groups * dim, 50, seed=seed)
    codes = torch.randint(entries, (out, groups, books), generator=g, dtype=torch.uint8)
    scale = weight.square().mean(1).sqrt() * (torch.rand(out, generator=g) + 0.5)
    codebooks = torch.randn(books, entries, dim, generator=g)
    start = AdditiveCodes(codes, codebooks.to(dtype), scale.to(dtype))
    return weight.to(dtype), layer_hessian(x.to(dtype)), start


def with_codes(start, codes):
    return AdditiveCodes(codes, start.codebooks, start.scale)


def brute_force(weight, hessian, start):
    """Every code of a row, the loss computed from the definition."""
    out, groups, books = start.codes.shape
    best = torch.full((out,), torch.inf, dtype=torch.float64)
    for choice in itertools.product(range(start.codebooks.shape[1]), repeat=groups * books):
        pick = torch.tensor(choice).reshape(groups, books)
        row = torch.stack(
            [sum(start.codebooks[c, pick[j, c]] for c in range(books)) for j in range(groups)]
        ).flatten()
        for n in range(out):
            delta = weight[n] - start.scale[n] * row
            best[n] = min(best[n], float(delta @ hessian @ delta))
    return best


@pytest.mark.parametrize("sizes", [{"groups": 3, "books": 2, "entries": 3}, {"groups": 6, "books": 1, "entries": 3}])
def test_a_full_beam_finds_the_best_of_all_codes(sizes):
    for seed in range(2):
        weight, hessian, start = problem(out=4, seed=seed, **sizes)
        found = beam_search(weight, hessian, start, beam=3**6)
        loss = row_loss(weight, with_codes(start, found), hessian)
        torch.testing.assert_close(loss, brute_force(weight, hessian, start), rtol=1e-9, atol=0)


def literal_beam(weight, hessian, start, beam):
    """The same search for one row after the other, with losses computed from the definition."""
    out, groups, books = start.codes.shape
    found = start.codes.clone()
    for n in range(out):

        def loss(codes, n=n):
            pieces = [sum(start.codebooks[c, codes[j][c]] for c in range(books)) for j in range(groups)]
            delta = weight[n] - start.scale[n] * torch.cat(pieces)
            return float(delta @ hessian @ delta)

        kept = [start.codes[n].tolist()]
        for j, c in itertools.product(range(groups), range(books)):
            tried = []
            for codes in kept:
                for e in range(start.codebooks.shape[1]):
                    changed = [list(group) for group in codes]
                    changed[j][c] = e
                    tried.append((loss(changed), changed))
            kept = [codes for _, codes in sorted(tried, key=lambda pair: pair[0])[:beam]]
        found[n] = torch.tensor(kept[0], dtype=torch.uint8)
    return found


@examples(10)
@given(seed=st.integers(0, 1000), beam=st.integers(1, 6), books=st.integers(1, 3), dim=st.integers(1, 3))
def test_equals_the_literal_search(seed, beam, books, dim):
    weight, hessian, start = problem(out=3, groups=4, books=books, entries=3, dim=dim, seed=seed)
    assert torch.equal(beam_search(weight, hessian, start, beam=beam), literal_beam(weight, hessian, start, beam))


@examples(15)
@given(seed=st.integers(0, 10_000), beam=st.integers(1, 5), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_no_row_gets_worse(seed, beam, dtype):
    weight, hessian, start = problem(out=8, groups=6, entries=8, dim=4, seed=seed, dtype=dtype)
    found = with_codes(start, beam_search(weight, hessian, start, beam=beam))
    before, after = (row_loss(weight, q, hessian.double()) for q in (start, found))
    assert (after <= before).all() and after.sum() < before.sum()


def test_a_wider_beam_is_better_on_the_whole():
    total = dict.fromkeys((1, 4, 16), 0.0)
    for seed in range(4):
        weight, hessian, start = problem(out=40, groups=8, entries=8, dim=2, seed=seed)
        for beam in total:
            found = with_codes(start, beam_search(weight, hessian, start, beam=beam))
            total[beam] += float(row_loss(weight, found, hessian).sum())
    assert total[16] < total[4] < total[1]


def test_rows_in_parts_change_nothing(monkeypatch):
    weight, hessian, start = problem(out=9, groups=4, entries=8)
    whole = beam_search(weight, hessian, start)
    monkeypatch.setattr("mlcomp.quant.additive.aqlm_beam_search.FLOATS", 4 * 8 * 2)
    assert torch.equal(beam_search(weight, hessian, start), whole)


def test_edges():
    weight, hessian, start = problem()
    zero = AdditiveCodes(start.codes, start.codebooks, torch.zeros_like(start.scale))
    assert torch.equal(beam_search(weight, hessian, zero), start.codes)  # nothing to gain: codes stay
    assert torch.equal(beam_search(weight, torch.zeros_like(hessian), start), start.codes)
    scaled = beam_search(weight, hessian * 2.0**60, start)
    assert torch.equal(scaled, beam_search(weight, hessian, start))
    negative = AdditiveCodes(start.codes, -start.codebooks, -start.scale)
    assert torch.equal(beam_search(weight, hessian, negative), beam_search(weight, hessian, start))


def test_bad_input(as_user):
    weight, hessian, start = problem()
    for beam in (0, 1.5, True):
        with pytest.raises(ValueError, match="beam must be"):
            beam_search(weight, hessian, start, beam=beam)
    with pytest.raises(ValueError, match="start stands for a weight"):
        beam_search(weight[:2], hessian, start)
    with pytest.raises(ValueError, match="NaN"):
        beam_search(weight / 0, hessian, start)
    with pytest.raises(ValueError, match="symmetric"):
        beam_search(weight, hessian.triu(), start)
