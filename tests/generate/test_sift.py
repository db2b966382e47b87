"""The filters against the authors' rules, written out one by one, and what each of them lets through."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.generate import rouge_l, sift
from tests.examples import examples

GOOD = "Name three rivers of Europe"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Name three rivers", "short"),  # three words are too few, four are enough
        ("Name three rivers there", ""),
        (" ".join(f"w{n}" for n in range(151)), "long"),
        (" ".join(f"w{n}" for n in range(150)), ""),
        ("Describe what the Image shows", "banned word"),
        ("Describe your imagination to me", ""),  # whole words only
        ("Please go to the shop", "banned word"),
        ("Write a program that sorts numbers", "write a program"),
        ("Tell me how to write a program", ""),
        ("- name three other rivers", "start"),
        ("Überlege dir drei Namen bitte", "start"),
        ("name three rivers of europe!", "similar"),
        ("", "short"),
    ],
)
def test_the_reason_for_one_text(text, reason):
    assert sift([text], pool=[GOOD]).reasons == (reason,)


def test_the_threshold_itself_passes():
    # 7 of 10 words each, in one order: F is 0.7, which is not above 0.7
    text, other = "a b c d e f g x y z", "a b c d e f g u v w"
    assert rouge_l(text, other) == 0.7 and sift([text], pool=[other]).kept == (text,)
    assert sift([text], pool=["a b c d e f g h v w"]).kept == (text,)
    assert sift(["a b c d e f g h y z"], pool=["a b c d e f g h v w"]).kept == ()


def test_the_second_of_two_alike_goes_and_a_rejected_one_is_nobodys_neighbour():
    assert sift([GOOD, GOOD.upper(), GOOD + " Map", GOOD + " please"]).reasons == (
        "",
        "similar",
        "banned word",
        "similar",
    )
    assert sift(["One two three map", "One two three four"]).reasons == ("banned word", "")


@examples(30)
@given(st.lists(st.lists(st.sampled_from("abcde"), min_size=4, max_size=7).map(" ".join), max_size=12))
def test_what_is_kept_is_new_and_what_is_similar_has_a_neighbour(texts):
    found = sift(texts)
    for i, text in enumerate(found.kept):
        assert all(rouge_l(text, other) <= 0.7 for other in found.kept[:i])
    kept = []
    for text, reason in zip(texts, found.reasons, strict=True):
        assert (reason == "similar") == any(rouge_l(text, other) > 0.7 for other in kept)
        if not reason:
            kept.append(text)
    assert tuple(kept) == found.kept


def test_other_limits():
    assert sift(["Hi you"], least=2, banned=()).kept == ("Hi you",)
    assert sift(["See the map now"], banned=(), programs=True).kept
    assert sift([GOOD, GOOD], similar=1).kept == (GOOD, GOOD)


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ("a text", {}, "sequence of strings"),
        ([1], {}, "sequence of strings"),
        ([], {"least": 0}, "least"),
        ([], {"least": 5, "most": 4}, "most"),
        ([], {"similar": 1.1}, "similar"),
    ],
)
def test_bad_input(texts, options, message, as_user):
    with pytest.raises(ValueError, match=message):
        sift(texts, **options)
