"""ROUGE-L against the definition, a table, and Google's implementation where it is installed."""

from itertools import combinations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlcomp.generate import rouge_l
from mlcomp.generate.rouge_l import common_subsequence, words
from tests.examples import examples

WORDS = st.lists(st.sampled_from("abc"), max_size=7)


def by_trying(first, second):
    """The longest of all subsequences of the first text that is one of the second."""
    theirs = {c for n in range(len(second) + 1) for c in combinations(second, n)}
    return max(n for n in range(len(first) + 1) for c in combinations(first, n) if c in theirs)


def by_table(first, second):
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@examples(60)
@given(WORDS, WORDS)
@example(list("abcbdab"), list("bdcaba"))  # 4, the example of the textbooks
def test_the_length_is_that_of_the_longest_of_all_subsequences(first, second):
    assert common_subsequence(first, second) == by_trying(first, second) == common_subsequence(second, first)


@examples(20)
@given(st.lists(st.sampled_from("abcdefgh"), max_size=90), st.lists(st.sampled_from("abcdefgh"), max_size=90))
def test_long_texts_against_the_table(first, second):
    assert common_subsequence(first, second) == by_table(first, second)


def test_lins_example():
    # Lin 2004, section 3.1: S1 against S2 and S3; F of ROUGE-L with beta = 1.
    reference = "police killed the gunman"
    assert rouge_l(reference, "police kill the gunman") == pytest.approx(3 / 4)
    assert rouge_l(reference, "the gunman kill police") == pytest.approx(2 / 4)


def test_capitals_and_marks_do_not_count_and_no_word_is_like_nothing():
    assert rouge_l("Write a poem!", "write a POEM") == 1
    assert words("Don't, 2 times") == ["don", "t", "2", "times"]
    assert rouge_l("", "a") == rouge_l("...", "...") == 0


@examples(20)
@given(st.text("ab c1.É", max_size=30), st.text("ab c1.É", max_size=30))
def test_against_googles_implementation(first, second):
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=False)
    assert rouge_l(first, second) == pytest.approx(scorer.score(first, second)["rougeL"].fmeasure)
