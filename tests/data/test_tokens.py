import pytest
import torch

from mlcomp.data import token_batches


def letters(text, add_special_tokens, verbose):
    """A tokenizer of one token a character."""
    assert not add_special_tokens and not verbose
    return {"input_ids": [ord(c) for c in text]}


def test_sequences_follow_one_another():
    batches = token_batches(letters, "abcdefghijklmnop", length=3, count=5, batch_size=2)
    assert ["".join(map(chr, row)) for b in batches for row in b.tolist()] == ["abc", "def", "ghi", "jkl", "mno"]
    assert [b.shape for b in batches] == [(2, 3), (2, 3), (1, 3)]
    assert batches[0].dtype == torch.int64


def test_text_exactly_long_enough_and_one_short():
    assert len(token_batches(letters, "abcd", length=2, count=2)) == 1
    with pytest.raises(ValueError, match="the text has 3 tokens, fewer than 2 sequences of 2"):
        token_batches(letters, "abc", length=2, count=2)


@pytest.mark.parametrize("name", ["length", "count", "batch_size"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_bad_sizes(as_user, name, value):
    with pytest.raises(ValueError, match=name):
        token_batches(letters, "abcd", **{"length": 1, "count": 1, "batch_size": 1} | {name: value})
