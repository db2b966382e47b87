import pytest

from mlcomp.data import python_reference, python_sentences


def test_two_parts_share_no_paragraph():
    parts = [python_reference(split).split("\n\n") for split in ("calibration", "held_out")]
    assert all(len(p) == len(set(p)) for p in parts)
    assert not set(parts[0]) & set(parts[1])


def test_parts_are_large_enough_for_the_course():
    """16 sequences of 256 tokens held out, 64 for calibration, at about 4 characters a token, with room to spare."""
    assert len(python_reference("calibration")) > 150_000
    assert 60_000 < len(python_reference("held_out")) < 0.5 * len(python_reference("calibration"))


def test_the_same_every_time():
    assert python_reference() == python_reference("calibration")


def test_sentences_are_prose():
    for split in ("calibration", "held_out"):
        sentences = python_sentences(split, count=100)
        assert len(set(sentences)) == 100
        assert all(60 <= len(s) <= 600 and "\n" not in s and s.endswith(".") for s in sentences)


def test_bad_input(as_user):
    with pytest.raises(ValueError, match="split"):
        python_reference("train")
    with pytest.raises(ValueError, match="count must be a whole number from 1 to"):
        python_sentences(count=0)
    with pytest.raises(ValueError, match="count must be a whole number from 1 to"):
        python_sentences(count=100_000)
