"""The pentagon's symmetries against 2×2 matrices, and rationales against products computed anew."""

import itertools
import math

import pytest
import torch

from mlcomp.data import group_products
from mlcomp.data.group_products import (
    EQUALS,
    ORDER,
    STOP,
    answers,
    multiply,
    rationales,
    right_steps,
    stated_answers,
)

ALL = torch.arange(ORDER)


def matrix(element):
    """A turn by 72° times i, after a reflection at the x axis if j = 1."""
    i, j = element % 5, element // 5
    c, s = math.cos(2 * math.pi * i / 5), math.sin(2 * math.pi * i / 5)
    turn = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    return turn @ torch.diag(torch.tensor([1.0, -1.0 if j else 1.0], dtype=torch.float64))


def test_products_are_those_of_the_matrices():
    matrices = torch.stack([matrix(e) for e in range(ORDER)])
    for a, b in itertools.product(range(ORDER), repeat=2):
        product = int(multiply(torch.tensor(a), torch.tensor(b)))
        torch.testing.assert_close(matrices[a] @ matrices[b], matrices[product], atol=1e-12, rtol=0)
    assert (
        multiply(ALL[:, None].expand(10, 10), ALL.expand(10, 10))
        != multiply(ALL.expand(10, 10), ALL[:, None].expand(10, 10))
    ).any()


def test_answers_do_not_depend_on_which_pair_comes_first():
    q = group_products(200, seed=0)
    a, b, c, d = q.T
    assert torch.equal(answers(q), multiply(multiply(a, b), multiply(c, d)))
    assert torch.equal(answers(q), multiply(a, multiply(b, multiply(c, d))))


def test_questions_are_different_and_keep_away_from_others():
    first = group_products(6000, seed=3)
    rest = group_products(4000, seed=4, without=first)
    assert len(torch.cat((first, rest)).unique(dim=0)) == 10_000
    assert torch.equal(first, group_products(6000, seed=3)) and not torch.equal(first, group_products(6000, seed=5))
    with pytest.raises(ValueError, match="at most 4000, the questions that are left, got 4001"):
        group_products(4001, seed=4, without=first)


def test_rationales_are_right_and_take_every_way():
    q = group_products(300, seed=1)
    texts = rationales(q, seed=0)
    assert texts.shape == (300, 9) and right_steps(q, texts).all()
    assert torch.equal(stated_answers(texts), answers(q))
    one = torch.tensor([[1, 7, 3, 8]]).expand(200, 4)
    assert len(rationales(one, seed=2).unique(dim=0)) == 6  # three pairs, then two
    p = multiply(torch.tensor(1), torch.tensor(7))
    assert any(text[:4] == [int(p), 3, 8, EQUALS] for text in rationales(one, seed=2).tolist())


def test_a_wrong_step_is_seen_even_if_the_answer_is_right():
    q = group_products(50, seed=1)
    texts = rationales(q, seed=0)
    for place in (0, 1, 2, 4, 5, 7):
        wrong = texts.clone()
        wrong[:, place] = (wrong[:, place] + 1) % ORDER
        assert not right_steps(q, wrong).any()
    assert not right_steps(q, texts[:, :8]).any()  # nothing stops it


def test_stated_answers_stand_before_the_first_stop():
    texts = torch.tensor(
        [[3, STOP, 4, STOP], [EQUALS, STOP, 1, 1], [STOP, 2, STOP, STOP], [1, 2, 3, 4], [5, 6, 7, STOP]]
    )
    assert stated_answers(texts).tolist() == [3, -1, -1, -1, 7]


@pytest.mark.parametrize("questions", [torch.zeros(3, 5, dtype=torch.long), torch.full((2, 4), 10)])
def test_other_questions_are_refused(questions, as_user):
    for function in (answers, lambda q: rationales(q, seed=0)):
        with pytest.raises(ValueError, match="questions"):
            function(questions)
