"""The vote: by counting every candidate."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.generate import vote, vote_each
from tests.examples import examples


@pytest.mark.parametrize(
    ("outputs", "winner"),
    [
        (["long one", "long one", "b"], "long one"),  # the most frequent, though it is longer and earlier
        (["ccc", "bb", "ccc", "bb", "a"], "bb"),  # of two that are equally frequent the shorter
        (["d", "c", "c", "d"], "c"),  # and of two as long the first by the alphabet
        (["x"], "x"),
    ],
)
def test_most_frequent_then_shortest_then_the_alphabet(outputs, winner):
    assert vote(outputs) == winner


@examples(40)
@given(st.lists(st.sampled_from(["a", "b", "aa", "ab", "aaa"]), min_size=1, max_size=9))
def test_no_other_output_has_a_better_claim(outputs):
    winner = vote(outputs)
    for other in outputs:
        claims = outputs.count(other), -len(other)
        mine = outputs.count(winner), -len(winner)
        assert claims < mine or (claims == mine and winner <= other)


def test_each_input_once_in_the_order_in_which_it_comes():
    pairs = [("Good  day", "praise"), ("Bad", "complaint"), ("good day", "question"), ("GOOD DAY", "question")]
    assert vote_each(pairs) == [("Good  day", "question"), ("Bad", "complaint")]


@pytest.mark.parametrize("outputs", [[], "abc"])
def test_nothing_to_vote_on(outputs):
    with pytest.raises(ValueError, match="at least one string"):
        vote(outputs)
