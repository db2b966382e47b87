"""The vote against counting by hand, and its accuracy against all the ways in which samples can fall."""

import itertools

import pytest
import torch

from mlcomp.generate import majority_vote, sample_outputs, sample_rationales, voting_accuracy
from tests.generate.models import END, Table


def enumerated(p, samples, right):
    """Return the accuracy of the vote: every sequence of samples, its probability, and the share of ties."""
    total = 0.0
    for draws in itertools.product(range(len(p)), repeat=samples):
        votes = [draws.count(k) for k in range(len(p))]
        best = [k for k, v in enumerate(votes) if v == max(votes)]
        if right in best:
            probability = 1.0
            for k in draws:
                probability *= p[k]
            total += probability / len(best)
    return total


@pytest.mark.parametrize("p", [(0.4, 0.3, 0.3), (0.4, 0.6), (0.1, 0.2, 0.3, 0.4), (1.0,), (0.5, 0.5, 0.0)])
@pytest.mark.parametrize("samples", [1, 2, 3, 5])
def test_accuracy_of_the_vote(p, samples):
    for right in range(len(p)):
        got = voting_accuracy(torch.tensor(p, dtype=torch.float64), samples, right=right)
        assert got == pytest.approx(enumerated(p, samples, right), abs=1e-12)


def test_voting_takes_the_mode_and_two_samples_never_help():
    likely, unlikely = torch.tensor([0.4, 0.3, 0.3]), torch.tensor([0.4, 0.6])
    assert [round(voting_accuracy(likely, n), 3) for n in (3, 5, 15, 31)] == [0.424, 0.447, 0.534, 0.621]
    assert [round(voting_accuracy(unlikely, n), 3) for n in (3, 5, 15)] == [0.352, 0.317, 0.213]
    assert voting_accuracy(likely, 2) == pytest.approx(0.4)


def test_votes_are_counted_without_those_who_state_nothing():
    answers = torch.tensor([[1, -1, 2, 5], [1, -1, -1, 5], [0, -1, -1, 3]])
    assert majority_vote(answers).tolist() == [1, -1, 2, 5]
    assert majority_vote(torch.full((2, 3), -1)).tolist() == [-1, -1, -1]


def test_ties_are_broken_by_chance_and_by_the_seed():
    answers = torch.tensor([[0], [0], [2], [2], [1]]).expand(5, 2000)
    chosen = majority_vote(answers, seed=3)
    assert torch.equal(chosen, majority_vote(answers, seed=3))
    # 2000 fair draws: 0.5 with a standard deviation of 0.011
    assert set(chosen.tolist()) == {0, 2} and abs(float((chosen == 0).double().mean()) - 0.5) < 0.06


@pytest.mark.parametrize(
    "answers", [torch.zeros(3, dtype=torch.long), torch.zeros(0, 2, dtype=torch.long), torch.tensor([[-2]])]
)
def test_bad_votes(answers, as_user):
    with pytest.raises(ValueError, match="answers"):
        majority_vote(answers)


def test_bad_distributions():
    for wrong in (torch.tensor([0.5, 0.6]), torch.tensor([-0.5, 1.5]), torch.tensor([float("nan"), 1.0])):
        with pytest.raises(ValueError, match="probabilities"):
            voting_accuracy(wrong, 3)
    with pytest.raises(ValueError, match="right"):
        voting_accuracy(torch.tensor([1.0]), 3, right=1)


def test_each_sample_is_drawn_with_a_seed_of_its_own():
    model, prompts = Table(), torch.tensor([[0, 1], [2, 2], [1, 0]])
    found = sample_rationales(model.train(), prompts, samples=4, length=5, end=END, seed=7, temperature=0.8)
    for i, drawn in enumerate(found):
        assert torch.equal(drawn, sample_outputs(model, prompts, length=5, end=END, seed=7 + i, temperature=0.8))
    assert len(torch.unique(found, dim=0)) == 4 and model.training
    fewer = sample_rationales(model, prompts, samples=2, length=5, end=END, seed=7, temperature=0.8)
    assert torch.equal(fewer, found[:2])


@pytest.mark.parametrize(
    ("wrong", "error"), [({"samples": 0}, ValueError), ({"seed": -1}, ValueError), ({"map": 3}, TypeError)]
)
def test_samples_that_cannot_be_drawn(wrong, error):
    with pytest.raises(error, match=next(iter(wrong))):
        sample_rationales(Table(), torch.tensor([[0, 1]]), **{"samples": 2, "length": 5, "end": END} | wrong)
