"""The loss of responses token by token; each reason to leave a pair out."""

import pytest
import torch

from mlcomp.distill import instruction_rows, response_loss, sift_pairs
from mlcomp.train import train
from tests.generate.models import END, Table, by_hand

INSTRUCTIONS = [[0, 1], [2], [1, 1, 0]]
RESPONSES = [[2, 0, END], [1, END], [0, 2]]  # the last one was cut short


def literal(model, learn_instructions):
    """−log p of each token after the first, or of the responses' tokens, one at a time, over their number."""
    total, tokens = 0.0, 0
    for x, y in zip(INSTRUCTIONS, RESPONSES, strict=True):
        row = x + y
        for place in range(1 if learn_instructions else len(x), len(row)):
            total -= by_hand(model, row[:place], [row[place]])
            tokens += 1
    return total / tokens


@pytest.mark.parametrize("learn_instructions", [False, True])
def test_the_loss_is_that_of_the_tokens_one_at_a_time(learn_instructions):
    rows = instruction_rows(INSTRUCTIONS, RESPONSES, end=END, learn_instructions=learn_instructions)
    assert rows.inputs.shape == rows.labels.shape == (3, 4)
    got = response_loss(Table(0)(rows.inputs), rows.labels)
    assert float(got.detach()) == pytest.approx(literal(Table(0), learn_instructions), rel=1e-9)


def test_each_token_of_a_response_counts_once():
    rows = instruction_rows(INSTRUCTIONS, RESPONSES, end=END)
    assert [row[row >= 0].tolist() for row in rows.labels] == RESPONSES
    whole = instruction_rows(INSTRUCTIONS, RESPONSES, end=END, learn_instructions=True)
    assert [row[row >= 0].tolist() for row in whole.labels] == [
        x[1:] + y for x, y in zip(INSTRUCTIONS, RESPONSES, strict=True)
    ]
    assert torch.equal(rows.inputs, whole.inputs)


def test_what_is_not_learned_has_no_gradient():
    rows = instruction_rows(INSTRUCTIONS, RESPONSES, end=END)
    logits = Table(0)(rows.inputs).detach().requires_grad_()
    response_loss(logits, rows.labels).backward()
    assert torch.equal(logits.grad.abs().sum(-1) > 0, rows.labels >= 0)
    net = Table(0)
    train(net, rows.inputs, rows.labels, epochs=20, lr=1.0, loss=response_loss, progress=False)
    assert literal(net, False) < 0.1 < literal(net, True)  # the instructions were not learned


def test_each_reason_and_the_order_in_which_they_hold():
    pairs = [
        ("Sort 3 1 2", "1 2 3"),
        ("  ", "1"),
        ("Count to two", " "),
        ("Count to nine", "1 2 3 4"),
        ("Write a poem", "I'm sorry, but I can\u2019t."),
        ("Write a song", "I am sorry, but as a model…"),
        ("sort  3 1 2", "1 2 3"),
        ("Reverse the word house, please", "esuoh"),
        ("Say why people say I cannot", "They mean it."),
    ]
    ended = [True, True, True, False, True, True, True, True, True]
    sifted = sift_pairs(pairs, ended=ended, held_out=["reverse the word house"])
    want = ("", "empty", "empty", "truncated", "refusal", "refusal", "duplicate", "leak", "")
    assert sifted.reasons == want
    assert sifted.kept == (pairs[0], pairs[-1])
    # Nothing is similar enough, but the same words are the same.
    loose = sift_pairs(pairs, held_out=["reverse the word house", "SORT 3 1  2"], similar=1)
    assert loose.reasons == ("leak", "empty", "empty", "", "refusal", "refusal", "leak", "", "")
    assert sift_pairs([], held_out=["x"]).kept == ()


def test_texts_without_letters_leak_only_if_they_are_the_same():
    assert sift_pairs([("+ ?", "1"), ("- ?", "2")], held_out=["+  ?"]).reasons == ("leak", "")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: instruction_rows([[1]], [[1], [2]], end=0), "one response for each"),
        (lambda: instruction_rows([], [], end=0), "one response for each"),
        (lambda: instruction_rows([[1]], [[]], end=0), "at least one token"),
        (lambda: instruction_rows([[1, -1]], [[1]], end=0), "none below 0"),
        (lambda: instruction_rows([[1]], [[1]], end=-1), "end"),
        (lambda: response_loss(torch.zeros(2, 3), torch.tensor([-100, -100])), "at least one token"),
        (lambda: response_loss(torch.zeros(2, 3), torch.tensor([-100, 3])), "0 … 2"),
        (lambda: response_loss(torch.zeros(2, 3), torch.tensor([-1, 2])), "0 … 2"),
        (lambda: response_loss(torch.zeros(2, 3), torch.tensor([1])), "labels must be"),
        (lambda: sift_pairs([("a",)]), "two strings each"),
        (lambda: sift_pairs([("a", "b")], ended=[]), "ended"),
        (lambda: sift_pairs([("a", "b")], similar=2), "similar"),
        (lambda: sift_pairs([("a", "b")], held_out="a"), "sequences of strings"),
    ],
)
def test_bad_input_is_refused(call, message, as_user):
    with pytest.raises(ValueError, match=message):
        call()
