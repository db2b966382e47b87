import math

import pytest
import torch

from mlcomp.data import number_words
from mlcomp.data.number_words import WORDS, english, translations


def test_english_words_by_hand():
    said = {1: "one", 12: "twelve", 20: "twenty", 47: "forty seven", 100: "one hundred", 219: "two hundred nineteen"}
    said |= {1000: "one thousand", 3005: "three thousand five", 9999: "nine thousand nine hundred ninety nine"}
    assert {number: " ".join(english(number)) for number in said} == said
    assert len({" ".join(english(number)) for number in range(1, 10_000)}) == 9999


def test_all_translations_of_a_number_by_hand():
    found = {" ".join(WORDS[t] for t in tokens): p for tokens, p in translations(47)}
    assert found == pytest.approx(
        {
            "sieben und vierzig .": 0.6 * 0.6 * 0.6,
            "siebn und vierzig .": 0.6 * 0.4 * 0.6,
            "sieben und fiarzig .": 0.6 * 0.6 * 0.4,
            "siebn und fiarzig .": 0.6 * 0.4 * 0.4,
            "vierzig sieben .": 0.4 * 0.6 * 0.6,
            "vierzig siebn .": 0.4 * 0.6 * 0.4,
            "fiarzig sieben .": 0.4 * 0.4 * 0.6,
            "fiarzig siebn .": 0.4 * 0.4 * 0.4,
        }
    )
    assert [len(translations(n)) for n in (1, 15, 30, 200, 1016, 4567)] == [2, 2, 2, 4, 8, 128]
    assert translations(4567)[0][1] == pytest.approx(0.6**7)


def test_the_probabilities_of_all_translations_add_up_to_one():
    for number in range(1, 10_000, 37):
        assert math.fsum(p for _, p in translations(number)) == pytest.approx(1.0)
        assert len({tokens for tokens, _ in translations(number)}) == len(translations(number))


@pytest.mark.slow
def test_references_are_right_and_drawn_as_often_as_they_are_likely():
    data = number_words(9999, seed=3)
    assert data.right(data.references).all() and data.right(data.likeliest()).all()
    assert not data.right(data.references.roll(1, 0))[:100].all()
    surprise, entropy = 0.0, 0.0
    for number, row in zip(data.numbers.tolist(), data.references.tolist(), strict=True):
        known = dict(translations(number))
        surprise -= math.log(known[tuple(row[: row.index(data.end) + 1])]) / 9999
        entropy -= math.fsum(p * math.log(p) for p in known.values()) / 9999
    # seven draws at most, each with a standard deviation of 0.2 nats, for each of 9999 numbers: five standard errors
    assert surprise == pytest.approx(entropy, abs=5 * 0.2 * 7**0.5 / 100)


def test_the_draw_depends_on_the_seed_alone_and_leaves_out_what_it_should():
    a, b, c = number_words(50, seed=1), number_words(50, seed=1), number_words(50, seed=2)
    assert torch.equal(a.references, b.references) and not torch.equal(a.numbers, c.numbers)
    assert len(a.numbers.unique()) == 50
    rest = number_words(9949, seed=1, leave_out=a.numbers.tolist())
    assert not set(rest.numbers.tolist()) & set(a.numbers.tolist())


def test_text_and_shapes():
    assert len(set(WORDS)) == len(WORDS) < 256
    data = number_words(300)
    assert data.prompts.shape == (300, 7) and data.references.shape == (300, 8)
    row = data.numbers.tolist().index(max(data.numbers.tolist()))
    assert data.text(data.prompts[row]) == " ".join([*english(int(data.numbers[row])), "→"])
    assert data.text(data.likeliest()[row]).endswith(".") and data.words[data.end] == "."
    assert not data.right(torch.zeros(300, 3, dtype=torch.long)).any()


def test_bad_input_is_refused(as_user):
    for count in (0, 10_000, 2.5):
        with pytest.raises(ValueError, match="count"):
            number_words(count)
    with pytest.raises(ValueError, match="count"):
        number_words(9999, leave_out=[5])
    with pytest.raises(TypeError, match="outputs"):
        number_words(3).right(torch.zeros(3, 2))
