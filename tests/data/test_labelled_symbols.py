"""The exact rule against every way in which labels can be drawn; the chain against its definition."""

import itertools
import math

import pytest
import torch

from mlcomp.data.labelled_symbols import (
    CHAIN_ENTROPY,
    LABELS,
    SYMBOLS,
    VOCABULARY,
    bayes_labels,
    by_shots,
    chain_text,
    labelled_symbols,
)


def enumerated(row, noise):
    """P(next label | before) as a ratio of sums over all labels that three symbols can have."""
    symbols, written = row[0::2], [y - SYMBOLS for y in row[1::2]]
    names = sorted(set(symbols))
    found = []
    for place, symbol in enumerate(symbols):
        joint = [0.0] * LABELS
        for labels in itertools.product(range(LABELS), repeat=len(names)):
            own = dict(zip(names, labels, strict=True))
            p = 1.0
            for x, y in zip(symbols[:place], written[:place], strict=True):
                p *= 1 - noise if own[x] == y else noise / (LABELS - 1)
            for y in range(LABELS):
                joint[y] += p * (1 - noise if own[symbol] == y else noise / (LABELS - 1))
        found.append([v / sum(joint) for v in joint])
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("noise", [0.1, 0.4])
def test_the_rule_is_that_of_all_possible_labels(noise):
    new = labelled_symbols(6, pairs=7, symbols=3, noise=noise, seed=1)
    want = torch.stack([enumerated(row, noise) for row in new.tokens.tolist()])
    torch.testing.assert_close(bayes_labels(new.tokens, noise=noise), want)


def test_sequences_are_as_described():
    new = labelled_symbols(4000, seed=3)
    x, y = new.tokens[:, 0::2], new.tokens[:, 1::2] - SYMBOLS
    assert new.tokens.shape == (4000, 24)
    # 48 000 pairs: a share of 0.1 has a standard error of 0.0014, a label's quarter one of at most 0.0025.
    assert float((y != new.own).double().mean()) == pytest.approx(0.1, abs=0.007)
    wrong = (y - new.own)[y != new.own] % LABELS
    assert torch.bincount(wrong, minlength=4)[1:].double().div(len(wrong)).sub(1 / 3).abs().max() < 0.04
    assert torch.bincount(new.own.flatten()).double().div(48_000).sub(1 / 4).abs().max() < 0.013
    for tokens, own, shots in zip(x[:50].tolist(), new.own[:50].tolist(), new.shots[:50].tolist(), strict=True):
        of = {}
        for place, (symbol, label) in enumerate(zip(tokens, own, strict=True)):
            assert of.setdefault(symbol, label) == label and tokens[:place].count(symbol) == shots[place]
    two = labelled_symbols(500, symbols=2, noise=0, seed=3)
    assert max(len(row.unique()) for row in two.tokens[:, 0::2]) == 2
    assert len(two.tokens[:, 0::2].unique()) == SYMBOLS
    assert torch.equal(two.tokens[:, 1::2] - SYMBOLS, two.own)
    assert torch.equal(new.tokens, labelled_symbols(4000, seed=3).tokens)
    assert not torch.equal(new.tokens, labelled_symbols(4000, seed=4).tokens)


def test_after_one_shot_the_rule_is_right_unless_the_label_was_wrong():
    new = labelled_symbols(4000, seed=5)
    right = (bayes_labels(new.tokens).argmax(2) == new.own).double()
    got = by_shots(right, new.shots, most=3)
    # Three labels: at least two are right, or one and two others that differ (then each of three is as likely).
    three = 0.9**3 + 3 * 0.9**2 * 0.1 + 3 * 0.9 * 0.1**2 * (2 / 3) / 3
    assert got[0] == pytest.approx(1 / 4, abs=0.02)
    assert got[1] == pytest.approx(0.9, abs=0.02)
    assert got[2] == pytest.approx(0.9, abs=0.02)
    assert got[3] == pytest.approx(three, abs=0.02)


def test_by_shots_is_a_mean_for_each_number():
    values = torch.tensor([[1.0, 0.0, 4.0], [3.0, 2.0, 0.0]])
    shots = torch.tensor([[0, 0, 1], [0, 1, 3]])
    got = by_shots(values, shots, most=3).tolist()
    assert got[:2] == [4 / 3, 3.0] and math.isnan(got[2]) and got[3] == 0.0


def test_the_text_is_the_chain():
    texts = chain_text(4000, 11, seed=2)
    pairs = texts[:, :-1] * VOCABULARY + texts[:, 1:]
    shares = torch.bincount(pairs.flatten(), minlength=144).double().view(12, 12) / 40_000
    for i, j in itertools.product(range(12), repeat=2):
        want = 0.5 ** ((5 * i + 7 * j) % 12) / sum(0.5**k for k in range(12)) / 12
        assert float(shares[i, j]) == pytest.approx(want, abs=0.005)  # five standard errors of the largest
    assert math.log(4) - 0.01 < CHAIN_ENTROPY < math.log(4)  # that of a geometric law, a little less as it is cut
    assert torch.equal(chain_text(5, 1, seed=7), chain_text(5, 1, seed=7))


@pytest.mark.parametrize(
    "call",
    [
        lambda: labelled_symbols(0),
        lambda: labelled_symbols(3, symbols=9),
        lambda: labelled_symbols(3, noise=1.0),
        lambda: bayes_labels(torch.zeros(2, 4, dtype=torch.long)),
        lambda: bayes_labels(torch.tensor([[0, 8, 1]])),
        lambda: bayes_labels(torch.tensor([[0, 8]]), noise=0),
        lambda: by_shots(torch.zeros(2, 3), torch.zeros(3, 2, dtype=torch.long), most=1),
        lambda: chain_text(1, 0),
    ],
)
def test_bad_input_is_refused(call, as_user):
    with pytest.raises(ValueError, match=r"count|symbols|noise|labels|tokens|shots|length"):
        call()
