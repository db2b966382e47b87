"""Right responses by hand, and what the checker must not let pass."""

import pytest
import torch
from torch.nn import functional as F

from mlcomp.data.checkable_instructions import (
    KINDS,
    PHRASINGS,
    PROMPT,
    RESPONSE,
    STOP,
    TOKEN,
    VOCABULARY,
    WORDS,
    checkable_instructions,
    right_words,
)

BY_HAND = {
    ("reverse", "plain"): "4 1 7 3",
    ("sort", "commas"): "1 , 3 , 4 , 7",
    ("rotate", "brackets"): "[ 7 1 4 3 ]",
    ("swap", "dot"): "4 7 1 3 .",
    ("drop", "twice"): "3 7 1 3 7 1",
    ("largest", "label"): "answer : 7",
    ("largest", "commas"): "7",
    ("smallest", "twice"): "1 1",
    ("next", "plain"): "4 0 2 5",
}


@pytest.mark.parametrize("kind", BY_HAND)
def test_responses_by_hand(kind):
    assert " ".join(right_words(kind, [3, 7, 1, 4])) == BY_HAND[kind]


def filled(responses):
    return torch.stack([F.pad(torch.tensor(r), (0, RESPONSE + 1 - len(r)), value=STOP) for r in responses])


def test_every_kind_and_phrasing_comes_and_can_be_read():
    new = checkable_instructions(4000, seed=1)
    assert new.prompts.shape == (4000, PROMPT) and set(new.kinds) == set(KINDS)
    assert VOCABULARY == len(WORDS) == len(TOKEN)  # no word stands for two things
    assert len(checkable_instructions(500, kinds=KINDS[:1], seed=0).prompts[:, :3].unique(dim=0)) == len(PHRASINGS)
    texts = [" ".join(WORDS[t] for t in row) for row in new.prompts.tolist()]
    for text, digits in zip(texts, new.digits.tolist(), strict=True):
        assert text.endswith(": " + " ".join(map(str, digits)) + " =")
    one = checkable_instructions(1, kinds=[("swap", "dot")], phrasings=[(1, 0, 1, 1)], seed=3)
    assert " ".join(WORDS[t] for t in one.prompts[0, :4].tolist()) == "please dot exchange :"
    assert max(map(len, new.responses())) == RESPONSE


def test_an_instruction_has_one_right_response():
    """The same words never ask for two things: different kinds have no phrasing in common."""
    asked = {}
    for kind in KINDS:
        for row in checkable_instructions(300, kinds=[kind], seed=0).prompts[:, 1:3].tolist():
            assert asked.setdefault(tuple(row), kind) == kind


def test_right_up_to_the_end_and_no_further():
    new = checkable_instructions(300, seed=2)
    outputs = filled(new.responses())
    assert new.right(outputs).all()
    outputs[:, -1] = TOKEN["please"]
    assert new.right(outputs).all()  # what stands behind the end
    lengths = torch.tensor([len(r) for r in new.responses()])
    for place in (0, -2, -1):  # first token, last token of the text, the end
        wrong = filled(new.responses())
        at = (lengths + place).clamp(min=0) if place else torch.zeros_like(lengths)
        wrong[torch.arange(300), at] = TOKEN["·"]
        assert not new.right(wrong).any()
    assert not new.right(outputs[:, :1]).any()


def test_seeds_and_bad_input(as_user):
    assert torch.equal(checkable_instructions(9, seed=4).prompts, checkable_instructions(9, seed=4).prompts)
    for bad in ({"count": 0}, {"count": 3, "kinds": []}, {"count": 3, "kinds": [("sort", "loud")]}):
        with pytest.raises(ValueError, match=r"count|kinds"):
            checkable_instructions(**bad)
    with pytest.raises(ValueError, match="phrasings"):
        checkable_instructions(3, phrasings=[(2, 0, 0, 0)])
    with pytest.raises(ValueError, match="outputs"):
        checkable_instructions(3).right(torch.zeros(2, 9, dtype=torch.long))
